#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Cuts what the adapter room's unit tests need out of the reference outputs.

    python tools/make_adapter_goldens.py ../shared/reference tests/golden/adapter

Writes into the second folder:
  cases.safetensors  the adapter tensors of each single-layer case of the families that a delta
                     can hold, and its change of W where the reference has it, else x and y - y0
  cases.txt          a case a line: name kind out in kh kw stride padding strengths...
  config/NAME.json   adapter_config.json of PEFT cases
  layers_ARCH.txt    the layers of the tiny checkpoints: part kind conv out in kh kw name native
  files.txt          the reference's whole files: arch, file, layers that it changes
Needs numpy, torch and safetensors.
"""
import json
import os
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FAMILIES = {"lora", "loha", "lokr", "full"}


def usable(case, has_dw):
    if any(a["family"] not in FAMILIES or a.get("dora") for a in case["adapters"]):
        return False
    if case["case"].endswith("c3s2"):      # the stride does not change what becomes of W
        return False
    if case["case"] == "lokr-both-noalpha.c3":      # large, and lokr-both.c3 is there
        return False
    if "dora" in case["case"] or "bias" in case["case"].split(".")[0].split("-"):
        return False
    # A difference of the bias is part of y, but not of what is compared here.
    return has_dw or all(a["family"] != "full" for a in case["adapters"])


def cases(src, dst):
    manifest = json.load(open(os.path.join(src, "layers.json")))
    out, lines = {}, []
    os.makedirs(os.path.join(dst, "config"), exist_ok=True)
    with safe_open(os.path.join(src, "layers.safetensors"), "pt") as f:
        keys = set(f.keys())
        for c in manifest:
            name, n = c["case"], len(c["adapters"])
            has_dw = all(f"{name}/dW{i}" in keys for i in range(n))
            if not usable(c, has_dw):
                continue
            for k in sorted(keys):
                if k.startswith(name + "/a"):
                    out[k] = f.get_tensor(k)
            if has_dw:
                for i in range(n):
                    out[f"{name}/dW{i}"] = f.get_tensor(f"{name}/dW{i}")
            else:
                out[f"{name}/x"] = f.get_tensor(f"{name}/x")[:1].contiguous()
                dy = f.get_tensor(f"{name}/y").double() - f.get_tensor(f"{name}/y0").double()
                out[f"{name}/dy"] = dy[:1].float().contiguous()
            shape = c["shape"] + [1, 1] if len(c["shape"]) == 2 else c["shape"]
            lines.append(" ".join(str(v) for v in [
                name, c["type"], *shape, c.get("stride", 1), c.get("padding", 0),
                *(a["strength"] for a in c["adapters"])]))
            if "adapter_config" in c:
                with open(os.path.join(dst, "config", name + ".json"), "w") as g:
                    json.dump(c["adapter_config"], g)
    save_file(out, os.path.join(dst, "cases.safetensors"))
    os.chmod(os.path.join(dst, "cases.safetensors"), 0o644)
    with open(os.path.join(dst, "cases.txt"), "w") as g:
        g.write("\n".join(lines) + "\n")
    return len(lines)


def layer_tables(src, dst):
    sys.path.insert(0, src)
    import adapters
    for arch in ("sd15", "sd2", "sdxl"):
        with open(os.path.join(dst, f"layers_{arch}.txt"), "w") as g:
            for l in adapters.layers(arch, "tiny"):
                s = tuple(l.shape) + (1, 1, 1)
                kind = {"linear": "linear", "conv": "conv", "norm": "norm"}[l.type]
                dims = (s[0], s[1], s[2], s[3]) if l.type == "conv" else (s[0], s[1], 1, 1)
                g.write(" ".join(str(v) for v in (l.module, kind, *dims, l.name, l.ldm)) + "\n")


def files(src, dst):
    with open(os.path.join(dst, "files.txt"), "w") as g:
        for arch in ("sd15", "sd2", "sdxl"):
            m = json.load(open(os.path.join(src, f"adapters_{arch}.json")))
            counts = {a["file"]: a["layers"] for a in m["adapters"]}
            for n in m["namings"]:      # LoRAs without alpha: two tensors a layer
                with safe_open(os.path.join(src, n["file"]), "pt") as f:
                    counts[n["file"]] = len(f.keys()) // 2
            for name, n in sorted(counts.items()):
                g.write(f"{arch} {name} {n}\n")


def main():
    src, dst = sys.argv[1:3]
    os.makedirs(dst, exist_ok=True)
    print(cases(src, dst), "cases")
    layer_tables(src, dst)
    files(src, dst)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
