#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the small files that the tests of src/file read, with the libraries that define the
formats: the gguf package of PyPI and torch. Usage: make_file_samples.py (in the project's root).

tests/fuzz/corpus/gguf/ and tests/fuzz/corpus/torch/ are corpora and, by name, what
tests/unit/test_file_gguf.c and test_file_torch.c compare."""
import collections
import io
import os
import struct
import zipfile

import gguf
import numpy as np
import torch

GGUF = "tests/fuzz/corpus/gguf/"
TORCH = "tests/fuzz/corpus/torch/"


def counted(shape, dtype=np.float32):
    return np.arange(int(np.prod(shape)), dtype=dtype).reshape(shape)


def write(name, data):
    with open(name, "wb") as f:
        f.write(data)


# --- GGUF ---

def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_gguf():
    w = gguf.GGUFWriter(GGUF + "types", "sd1")
    w.add_uint8("u8", 200)
    w.add_int8("i8", -100)
    w.add_uint16("u16", 60000)
    w.add_int16("i16", -30000)
    w.add_uint32("u32", 4000000000)
    w.add_int32("i32", -2000000000)
    w.add_float32("f32", 0.1)
    w.add_bool("yes", True)
    w.add_bool("no", False)
    w.add_string("text", "two\nlines, gr\u00fc\u00df")
    w.add_uint64("u64", 18000000000000000000)
    w.add_int64("i64", -9000000000000000000)
    w.add_float64("f64", 0.1)
    w.add_array("numbers", [1, -2, 3])
    w.add_array("floats", [0.5, 1.5])
    w.add_array("words", ["a", "b\"\\\n"])
    w.add_array("nested", [[1, 2], [3]])
    w.add_tensor("f32", counted((2, 3)))
    w.add_tensor("f16", counted((3, 2, 1, 1), np.float16))
    w.add_tensor("bf16", counted((4,)).view(np.uint16)[1::2].copy().view(np.uint8),
                 raw_shape=(8,), raw_dtype=gguf.GGMLQuantizationType.BF16)
    w.add_tensor("f64", counted((2,), np.float64))
    w.add_tensor("i8", counted((3,), np.int8))
    w.add_tensor("i16", counted((3,), np.int16))
    w.add_tensor("i32", counted((3,), np.int32))
    w.add_tensor("i64", counted((3,), np.int64))
    finish(w)

    w = gguf.GGUFWriter(GGUF + "aligned", "sdxl")
    w.add_custom_alignment(64)
    w.add_tensor("a", counted((5,)))
    w.add_tensor("b", counted((5,)) + 10)
    finish(w)

    w = gguf.GGUFWriter(GGUF + "reshaped", "sdxl")
    w.add_array("comfy.gguf.orig_shape.conv.weight", [2, 4, 3, 3])
    w.add_tensor("conv.weight", counted((36, 2)))
    finish(w)

    w = gguf.GGUFWriter(GGUF + "quantised", "sdxl")
    q = gguf.GGMLQuantizationType
    for t in (q.Q4_0, q.Q4_1, q.Q5_0, q.Q5_1, q.Q8_0):
        w.add_tensor(t.name, gguf.quantize(counted((2, 64)) / 64 - 1, t), raw_dtype=t)
    finish(w)

    w = gguf.GGUFWriter(GGUF + "unknown", "sdxl")
    w.add_tensor("odd", np.zeros((2, 66), np.uint8), raw_dtype=q.IQ2_XXS)
    finish(w)

    w = gguf.GGUFWriter(GGUF + "big_endian", "sd1", endianess=gguf.GGUFEndian.BIG)
    w.add_tensor("a", counted((5,)))
    finish(w)

    one = open(GGUF + "aligned", "rb").read()
    write(GGUF + "version_2", one[:4] + struct.pack("<I", 2) + one[8:])
    write(GGUF + "version_1", one[:4] + struct.pack("<I", 1) + one[8:])
    write(GGUF + "empty", b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


# --- torch.save() ---

def save(value, **how):
    f = io.BytesIO()
    torch.save(value, f, **how)
    return f.getvalue()


class Call:
    """Pickled as a call of what it is given."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def tensors():
    d = collections.OrderedDict()
    d["a.weight"] = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    d["b.half"] = torch.arange(4, dtype=torch.float16)
    d["c.bf16"] = torch.arange(4, dtype=torch.bfloat16).reshape(1, 4, 1, 1)
    d["d.rows"] = d["a.weight"][1:]
    d["e.turned"] = d["a.weight"].t()
    d["f.parameter"] = torch.nn.Parameter(torch.ones(2))
    d["g.scalar"] = torch.tensor(0.5)
    d["h.long"] = torch.tensor([1, -1])
    d["i.empty"] = torch.zeros(0, 3)
    d["j.double"] = torch.tensor([0.25], dtype=torch.float64)
    d["k.bytes"] = torch.tensor([1, 255], dtype=torch.uint8)
    d["l.flags"] = torch.tensor([True, False])
    d["m.last"] = torch.arange(8, dtype=torch.float32).reshape(1, 2, 2, 2).to(
        memory_format=torch.channels_last)
    return d


def repack(data, method=zipfile.ZIP_STORED, only=lambda name: True):
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for e in old.infolist():
            if only(e.filename):
                new.writestr(e.filename, old.read(e))
    return out.getvalue()


def make_torch():
    plain = save(tensors())
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 2)
    lightning = {"epoch": 1, "pytorch-lightning_version": "1.4.2",
                 "callbacks": {collections.Counter: {"best": np.float64(0.5)}},
                 "optimizer_states": [{"lr": 0.1, "betas": (0.9, 0.999), "set": {1, 2}}],
                 "state_dict": tensors()}
    write(TORCH + "zip", plain)
    write(TORCH + "older", save(tensors(), _use_new_zipfile_serialization=False))
    write(TORCH + "protocol_4", save(tensors(), pickle_protocol=4))
    write(TORCH + "lightning", save(lightning))
    write(TORCH + "module", save({"model": module.state_dict(), "step": 10 ** 30}))
    words = {"*": torch.nn.Parameter(torch.arange(8, dtype=torch.float32).reshape(2, 4))}
    write(TORCH + "embedding", save({"string_to_token": {"*": 265}, "string_to_param": words}))
    write(TORCH + "embedding_module", save({"string_to_token": {"*": torch.tensor(265)},
                                            "string_to_param": torch.nn.ParameterDict(words)}))
    write(TORCH + "float8", save({"x": torch.ones(3).to(torch.float8_e4m3fn),
                                  "y": torch.ones(3).to(torch.float8_e5m2)}))
    write(TORCH + "repacked", repack(plain))
    limit, zipfile.ZIP64_LIMIT = zipfile.ZIP64_LIMIT, 0
    write(TORCH + "zip64", repack(plain))
    zipfile.ZIP64_LIMIT = limit
    write(TORCH + "deflated", repack(plain, zipfile.ZIP_DEFLATED))
    write(TORCH + "no_pickle", repack(plain, only=lambda n: not n.endswith("data.pkl")))
    write(TORCH + "no_storage", repack(plain, only=lambda n: not n.endswith("/data/0")))
    write(TORCH + "evil", save({"w": Call(os.system, "true")}))
    write(TORCH + "evil_older", save({"w": Call(eval, "1")}, _use_new_zipfile_serialization=False))
    write(TORCH + "whole_module", save(module))
    older = save(tensors(), _use_new_zipfile_serialization=False)
    write(TORCH + "pickle", older[older.index(b".", older.index(b"little_endian")) + 1:])
    write(TORCH + "complex", save({"z": torch.zeros(2, dtype=torch.complex64)}))
    write(TORCH + "list", save([torch.zeros(2)]))


if __name__ == "__main__":
    os.makedirs(GGUF, exist_ok=True)
    os.makedirs(TORCH, exist_ok=True)
    make_gguf()
    make_torch()
