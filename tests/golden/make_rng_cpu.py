#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes rng_cpu.json: torch.randn on a CPU generator.

    python make_rng_cpu.py [OUT]

A case is a seed and the sizes of successive calls. Of long calls the head, the tail and every
997th number are kept; "sum" covers all, in double.
"""
import json
import os
import sys

import torch

CASES = [
    (0, [1]), (0, [5]), (1, [15]), (2, [16]), (3, [17]), (42, [31]), (42, [100]), (42, [4 * 64 * 64]),
    (7, [4 * 64 * 64 + 9, 16]), (12345678901, [4 * 17 * 13, 4 * 64 * 64]), (2**63 - 1, [20, 15, 20]),
    (5, [1, 1, 1, 1]), (5, [3, 16, 3, 17, 1]), (99, [7, 8]), (1234, [3 * 5 * 7, 640, 623, 625]),
]


def kept(n):
    if n <= 110:
        return list(range(n))
    return sorted({*range(20), *range(n - 36, n), *range(0, n, 997)})


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "rng_cpu.json")
    rows = []
    for seed, sizes in CASES:
        g = torch.Generator("cpu").manual_seed(seed)
        for k, n in enumerate(sizes):
            v = torch.randn(n, generator=g)
            at = kept(n)
            rows.append({"seed": seed, "call": k, "n": n, "sum": float(v.double().sum()), "at": at,
                         "values": [float(f"{float(v[i]):.9g}") for i in at]})
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")


if __name__ == "__main__":
    main()
