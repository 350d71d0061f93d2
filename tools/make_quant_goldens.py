#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes tests/golden/quant.safetensors: what the gguf package makes of random blocks.

    pip install gguf numpy
    tools/make_quant_goldens.py

For each block type T:
    T.blocks  U8 [n, bytes]    random bytes, some with scales of about the size that weights have
    T.floats  F32 [n * block]  what gguf.dequantize makes of them
    T.error   F32 [k]          of each set of numbers, where the package can encode: the root of
                               sum (x - y)^2 / sum x^2, y being x encoded and decoded
and the sets of numbers to encode, input.0 ..: F32, 4096 numbers each.
"""
import json
import os

import gguf
import numpy as np

TYPES = ("q4_0 q4_1 q5_0 q5_1 q8_0 q2_K q3_K q4_K q5_K q6_K iq4_nl iq4_xs mxfp4 nvfp4 tq1_0 "
         "tq2_0").split()
# Where each type's f16 numbers are: random bits there are mostly far too large or small.
HALVES = {"q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
          "q2_K": [80, 82], "q3_K": [108], "q4_K": [0, 2], "q5_K": [0, 2], "q6_K": [208],
          "iq4_nl": [0], "iq4_xs": [0], "tq1_0": [52], "tq2_0": [64]}
PLACE = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                     "../tests/golden/quant.safetensors")


def inputs(rng):
    n = 4096
    spread = np.repeat(np.exp(rng.standard_normal(n // 64)), 64)
    return [x.astype(np.float32) for x in (
        0.02 * rng.standard_normal(n),
        0.02 * rng.standard_t(3, n),
        0.05 * rng.standard_normal(n) + 0.1,
        0.02 * rng.standard_normal(n) * spread,
        rng.uniform(-1, 1, n),
    )]


def blocks(rng, name, block, size):
    raw = rng.integers(0, 256, (max(4, 512 // block), size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        half = (rng.standard_normal(len(raw)) * 0.01).astype(np.float16)
        half[0] = -6e-8  # the least that f16 has
        raw[:-1, at:at + 2] = half[:-1].view(np.uint8).reshape(-1, 2)
    return raw


def main():
    rng = np.random.default_rng(6)
    np.seterr(all="ignore")
    data = inputs(rng)
    out = {f"input.{i}": x for i, x in enumerate(data)}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        raw = blocks(rng, name, block, size)
        out[name + ".blocks"] = raw
        out[name + ".floats"] = gguf.dequantize(raw, kind).astype(np.float32).reshape(-1)
        try:
            back = [gguf.dequantize(gguf.quantize(x.reshape(-1, 256), kind), kind).reshape(-1)
                    for x in data]
        except NotImplementedError:
            continue
        out[name + ".error"] = np.array(
            [np.sqrt(((x - y).astype(np.float64) ** 2).sum() / (x.astype(np.float64) ** 2).sum())
             for x, y in zip(data, back)], np.float32)
    header, at = {"__metadata__": {"gguf": "0.19.0"}}, 0
    for key, x in out.items():
        kind = {"float32": "F32", "uint8": "U8"}[str(x.dtype)]
        header[key] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(PLACE, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.write(b"".join(x.tobytes() for x in out.values()))


if __name__ == "__main__":
    main()
