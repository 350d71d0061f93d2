#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes ays.json: the "Align Your Steps" noise levels (Sabour et al. 2024, table 3) taken to n
steps by log-linear interpolation to n + 1 points, the last then replaced by 0.

    python make_ays.py
"""
import json
import os

import numpy as np

TABLES = {
    "sd1": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029],
    "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029],
}


def ays(table, n):
    x = np.linspace(0, 1, len(table))
    s = np.exp(np.interp(np.linspace(0, 1, n + 1), x, np.log(table)))
    s[-1] = 0
    return s


if __name__ == "__main__":
    rows = [{"arch": a, "n": n, "sigmas": ays(t, n).tolist()} for a, t in TABLES.items() for n in (1, 3, 10, 14, 28)]
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "ays.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
