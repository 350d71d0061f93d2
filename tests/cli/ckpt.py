# SPDX-License-Identifier: MIT
"""Writes tensors as torch.save() does, without torch."""
import io
import json
import pickle
import struct
import sys
import types
import zipfile

STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage"}
BYTES = {"F32": 4, "F16": 2}


def fake_torch():
    """Modules in which pickle finds the names that it writes."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2():
        pass

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = utils.__name__, \
        _rebuild_tensor_v2.__name__
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    return {"torch": torch, "torch._utils": utils}


class Storage:
    def __init__(self, kind, key, n):
        self.id = ("storage", kind, key, "cpu", n)


class Tensor:
    def __init__(self, rebuild, storage, shape):
        strides, step = [], 1
        for n in reversed(shape):
            strides.insert(0, step)
            step *= n
        self.call = rebuild, (storage, 0, tuple(shape), tuple(strides), False, {})

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, x):
        return x.id if isinstance(x, Storage) else None


def write(path, safetensors_path):
    """The tensors of a safetensors file, f32 and f16, as a checkpoint."""
    with open(safetensors_path, "rb") as f:
        data = f.read()
    n, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    header.pop("__metadata__", None)
    modules = fake_torch()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        with zipfile.ZipFile(path, "w") as z:
            tensors = {}
            for i, (name, t) in enumerate(header.items()):
                a, b = t["data_offsets"]
                kind = getattr(modules["torch"], STORAGES[t["dtype"]])
                storage = Storage(kind, str(i), (b - a) // BYTES[t["dtype"]])
                tensors[name] = Tensor(modules["torch._utils"]._rebuild_tensor_v2, storage,
                                       t["shape"])
                z.writestr("archive/data/%d" % i, data[8 + n + a:8 + n + b])
            text = io.BytesIO()
            Pickler(text, 2).dump({"state_dict": tensors, "global_step": 7})
            z.writestr("archive/data.pkl", text.getvalue())
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
