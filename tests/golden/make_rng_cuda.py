#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Normal numbers of torch.randn(..., device="cuda").

    python make_rng_cuda.py numpy   # anywhere: writes rng_philox.json
    python make_rng_cuda.py cuda    # with a GPU: writes rng_cuda.json, compares it with numpy

rng_philox.json comes from the implementation below (float64 after the integers, as A1111's CPU
stand-in for CUDA noise), rng_cuda.json from the device itself. Rows as in rng_cpu.json.
"""
import json
import os
import sys

import numpy as np

SEEDS = [0, 1, 42, 12345678901]
SIZES = [1, 5, 100, 4 * 64 * 64, 4 * 128 * 128]
CALLS = 2


def philox(seed, call, n):
    """Four words for each of n threads: Philox4x32-10, key = seed, counter = (call, thread)."""
    m = np.uint64(0xFFFFFFFF)
    c = np.zeros((4, n), np.uint64)
    c[0] = call
    c[2] = np.arange(n)
    k = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.stack([(b >> np.uint64(32)) ^ c[1] ^ k[0], b & m, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & m])
        k = [(k[0] + np.uint64(0x9E3779B9)) & m, (k[1] + np.uint64(0xBB67AE85)) & m]
    return c


def randn(seed, call, n):
    w = philox(seed, call, n).astype(np.float64)
    u, turn = (w[0] + 0.5) / 2**32, (w[1] + 0.5) / 2**32
    return np.sqrt(-2 * np.log(u)) * np.sin(2 * np.pi * turn)


def kept(n):
    if n <= 110:
        return list(range(n))
    return sorted({*range(20), *range(n - 20, n), *range(0, n, 1999)})


def write(name, draw):
    rows = []
    for seed in SEEDS:
        for n in SIZES:
            for k, v in enumerate(draw(seed, n)):
                at = kept(n)
                rows.append({"seed": seed, "call": k, "n": n, "sum": float(np.sum(v, dtype=np.float64)), "at": at,
                             "values": [float(f"{float(v[i]):.9g}") for i in at]})
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


def on_cpu(seed, n):
    return [randn(seed, k, n) for k in range(CALLS)]


def on_gpu(seed, n):
    import torch
    g = torch.Generator("cuda").manual_seed(seed)
    got = [torch.randn(n, generator=g, device="cuda").cpu().numpy() for _ in range(CALLS)]
    for k, v in enumerate(got):
        print(f"seed {seed} n {n} call {k}: largest difference from numpy {np.abs(v - randn(seed, k, n)).max():.3g}")
    return got


if __name__ == "__main__":
    if sys.argv[1:] == ["numpy"]:
        write("rng_philox.json", on_cpu)
    elif sys.argv[1:] == ["cuda"]:
        write("rng_cuda.json", on_gpu)
    else:
        sys.exit(__doc__)
