#!/bin/sh
# SPDX-License-Identifier: MIT
# A virtual environment of its own for the peers of tests/ (tests/peers/venv), torch for CPUs.
# KRON_PEERS_PYTHON=/path/to/python names one that has torch, lycoris-lora and peft already.
set -e
cd "$(dirname "$0")"
[ -x venv/bin/python ] || python3 -m venv venv
venv/bin/python -c 'import torch, lycoris, peft, safetensors' 2> /dev/null && exit
venv/bin/python -m pip install --quiet --upgrade pip
venv/bin/python -m pip install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
    venv/bin/python -m pip install --quiet torch
venv/bin/python -m pip install --quiet numpy safetensors lycoris-lora peft
venv/bin/python -c 'import torch, lycoris, peft; print("torch", torch.__version__, "peft", peft.__version__)'
