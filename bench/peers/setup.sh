#!/bin/sh
# SPDX-License-Identifier: MIT
# A virtual environment of its own for the peers (bench/peers/venv), torch for CPUs.
# KRON_PEERS_PYTHON=/path/to/python names one that has torch and diffusers already.
set -e
cd "$(dirname "$0")"
[ -x venv/bin/python ] || python3 -m venv venv
venv/bin/python -m pip install --quiet --upgrade pip
venv/bin/python -m pip install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
    venv/bin/python -m pip install --quiet torch
venv/bin/python -m pip install --quiet diffusers
venv/bin/python -c 'import torch, diffusers; print("torch", torch.__version__, "diffusers", diffusers.__version__)'
