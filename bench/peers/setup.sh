#!/bin/sh
# SPDX-License-Identifier: MIT
# A virtual environment of its own for the peers (bench/peers/venv): torch for CPUs, diffusers with
# transformers, LyCORIS and peft, and stable-diffusion.cpp, which is compiled for this processor
# (needs a C++ compiler and CMake; 5 to 20 minutes). `setup.sh FOLDER` puts it elsewhere.
# KRON_PEERS_PYTHON and KRON_SDCPP_PYTHON name other Pythons that have diffusers or
# stable_diffusion_cpp already; what is not there is left out of the comparison.
set -e
cd "$(dirname "$0")"
venv=${1:-venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet "$@"; }
pip --upgrade pip
pip torch --index-url https://download.pytorch.org/whl/cpu || pip torch
pip diffusers transformers peft lycoris_lora
CMAKE_ARGS="-DGGML_NATIVE=ON" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) pip stable-diffusion-cpp-python
"$venv/bin/python" - <<'END'
from importlib.metadata import version
print(*(f"{p} {version(p)}" for p in ("torch", "diffusers", "transformers", "peft", "lycoris_lora",
                                      "stable-diffusion-cpp-python")), sep=", ")
END
