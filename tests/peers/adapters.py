#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Holds Kron against LyCORIS and PEFT: fresh random adapters of every family on small layers.

    python tests/peers/adapters.py --program build/bin/kron-golden [--seed N] [--keep DIR]
                                   [--models ../shared/reference]

Each case is one layer with adapters that the library itself made and ran, in float64 where it can
(LyCORIS' Cayley transform is float32). All are written as a folder that kron-golden reads: the
layout of the project's reference outputs, layers.safetensors with layers.json. Sizes, numbers,
strengths and storage types follow from the seed, which is new in every run unless given.

What the library computes is taken from its forward pass at strength 1: LyCORIS' merged weights
count the scale twice for LoHa and LoKr. At another strength the truth is the line between the
plain and the adapted layer (LyCORIS' own DoRA is not the plain layer at strength 0); for a
butterfly, whose stages each take the strength, it is LyCORIS at that strength.

--models: whole networks too. DIR holds the scripts of the reference outputs; with a new seed they
make tiny SD1, SD2 and SDXL checkpoints and an adapter file of each family for them, which diffusers
and LyCORIS run (diffusers, transformers and open_clip_torch are needed then).
Needs torch, lycoris-lora, peft, safetensors, numpy (tests/peers/setup.sh).
"""
import argparse
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings

import torch
from safetensors.torch import save_file
from torch import nn

KINDS = {"lin": None, "c1": (1, 1, 1), "c3": (3, 3, 1), "c3s2": (3, 3, 2), "c13": (1, 3, 1),
         "gn": None, "ln": None}
TYPES = [torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


class Draw:
    """All that is random, from one seed."""

    def __init__(self, seed):
        self.py = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.torch, dtype=torch.float64)

    def pick(self, among):
        return self.py.choice(among)


def rounded(t, dtype):
    return t.to(dtype).to(torch.float64)


# --- a layer ---

def make_layer(d, kind, sizes=None, bias=None):
    """A module of float64 with numbers that f32 holds, and an input."""
    bias = d.pick([True, True, False]) if bias is None else bias
    out, cin = sizes or (d.pick([24, 32, 36, 48, 60, 64]), d.pick([20, 24, 32, 40, 72]))
    if kind == "lin":
        m = nn.Linear(cin, out, bias=bias)
        x = d.normal(2, d.pick([1, 5, 7, 77]), cin)
    elif kind == "gn":
        m, x = nn.GroupNorm(4, out), d.normal(2, out, 5, 6)
    elif kind == "ln":
        m, x = nn.LayerNorm(out), d.normal(2, 7, out)
    else:
        kh, kw, stride = KINDS[kind]
        m = nn.Conv2d(cin, out, (kh, kw), stride, (kh // 2, kw // 2), bias=bias)
        x = d.normal(d.pick([1, 2, 3]), cin, d.py.randint(5, 9), d.py.randint(5, 9))
    m = m.double().requires_grad_(False)
    w = d.normal(*m.weight.shape)
    w = 1 + 0.1 * w if kind in ("gn", "ln") else w * m.weight[0].numel() ** -0.5
    m.weight.copy_(rounded(w, torch.float32))
    if m.bias is not None:
        m.bias.copy_(rounded(0.1 * d.normal(*m.bias.shape), torch.float32))
    return m, rounded(x, torch.float32)


# --- LyCORIS ---

class Form:
    """One way of LyCORIS to make a file: its module class and arguments."""

    def __init__(self, cls, kinds, alpha=2.0, **kw):
        self.cls, self.kinds, self.alpha, self.kw = cls, kinds.split(), alpha, kw
        self.name = ""

    @property
    def dora(self):
        return self.kw.get("weight_decompose", False)


def lycoris_forms():
    from lycoris import modules as M
    lora, loha, lokr = M.LoConModule, M.LohaModule, M.LokrModule
    oft, boft, ia3 = M.DiagOFTModule, M.ButterflyOFTModule, M.IA3Module
    all_, some, windows = "lin c1 c3 c3s2 c13", "lin c3", "c3 c3s2 c13"
    whole = dict(lora_dim=4, full_matrix=True)
    low = dict(lora_dim=2, factor=4)
    out = dict(weight_decompose=True, wd_on_out=True)
    in_ = dict(weight_decompose=True, wd_on_out=False)
    forms = {
        "lora": Form(lora, all_, lora_dim=4),
        "lora-rank1": Form(lora, some, 0.5, lora_dim=1),
        "lora-noalpha": Form(lora, some, None, lora_dim=5),
        "lora-rs": Form(lora, some, lora_dim=4, rs_lora=True),
        "lora-scalar": Form(lora, some, lora_dim=4, use_scalar=True),
        "locon-mid": Form(lora, windows, lora_dim=4, use_tucker=True),
        "loha": Form(loha, all_, lora_dim=4),
        "loha-rank1": Form(loha, some, 0.5, lora_dim=1),
        "loha-scalar": Form(loha, some, lora_dim=4, use_scalar=True),
        "loha-tucker": Form(loha, windows, lora_dim=3, use_tucker=True),
        "lokr-full": Form(lokr, all_, 10000.0, factor=-1, **whole),
        "lokr-full-f4": Form(lokr, all_, 10000.0, factor=4, **whole),
        "lokr-full-f8": Form(lokr, some, 4.0, factor=8, **whole),
        "lokr-full-inf": Form(lokr, some, 100000.0, factor=4, **whole),
        "lokr-full-noalpha": Form(lokr, some, None, factor=4, **whole),
        "lokr-full-scalar": Form(lokr, some, factor=4, use_scalar=True, **whole),
        "lokr-unbalanced": Form(lokr, some, factor=4, unbalanced_factorization=True, **whole),
        "lokr-w2": Form(lokr, all_, 3.0, **low),
        "lokr-w2-rank1": Form(lokr, some, 0.25, lora_dim=1, factor=4),
        "lokr-w2-noalpha": Form(lokr, some, None, **low),
        "lokr-w2-rs": Form(lokr, some, rs_lora=True, **low),
        "lokr-both": Form(lokr, "lin c1 c3", 1.0, lora_dim=2, factor=16, decompose_both=True),
        "lokr-tucker": Form(lokr, windows, 3.0, use_tucker=True, **low),
        "lokr-tucker-both": Form(lokr, "c3", 1.0, lora_dim=2, factor=16, decompose_both=True,
                                 use_tucker=True),
        "lora-dora-out": Form(lora, all_, lora_dim=4, **out),
        "lora-dora-in": Form(lora, "lin c1 c3", lora_dim=4, **in_),
        "locon-mid-dora": Form(lora, "c3", lora_dim=4, use_tucker=True, **out),
        "loha-dora-out": Form(loha, some, lora_dim=4, **out),
        "loha-dora-in": Form(loha, some, lora_dim=4, **in_),
        "loha-tucker-dora": Form(loha, "c3", lora_dim=3, use_tucker=True, **out),
        "lokr-dora-out": Form(lokr, all_, 10000.0, factor=4, **whole, **out),
        "lokr-dora-in": Form(lokr, some, 10000.0, factor=4, **whole, **in_),
        "lokr-w2-dora-out": Form(lokr, some, **low, **out),
        "lokr-w2-dora-in": Form(lokr, some, **low, **in_),
        "lokr-both-dora-out": Form(lokr, some, lora_dim=2, factor=16, decompose_both=True, **out),
        "lokr-tucker-dora-out": Form(lokr, "c3", use_tucker=True, **low, **out),
        "lokr-tucker-dora-in": Form(lokr, "c3", use_tucker=True, **low, **in_),
        "full": Form(M.FullModule, all_, None),
        "norm": Form(M.NormModule, "gn ln", None),
        "ia3-out": Form(ia3, all_, None),
        "ia3-in": Form(ia3, "lin c1 c3", None, train_on_input=True),
        "oft": Form(oft, all_, 0.0, lora_dim=4),
        "oft-constraint": Form(oft, some, 0.003, lora_dim=4, constraint=0.003),
        "oft-rescale": Form(oft, some, 0.0, lora_dim=4, rescaled=True),
        "boft": Form(boft, "lin c1 c3 c3s2", 0.0, lora_dim=4),
        "boft-rescale": Form(boft, some, 0.0, lora_dim=4, rescaled=True),
        "glora": Form(M.GLoRAModule, "lin c1", lora_dim=4),
    }
    for name, form in forms.items():
        form.name = name
    return forms


def sizes_for(d, form):
    """Sizes where the form is what its name says; None: any."""
    if form.kw.get("decompose_both"):      # both factors must stay low rank
        return d.pick([128, 144, 160]), d.pick([112, 128, 144])
    if form.name.startswith("boft"):
        return d.pick([32, 64]), d.pick([20, 24, 40])
    return None


def is_factor(name):
    return name.split(".")[0].startswith(("lora_", "hada_", "lokr_"))


def fill(d, form, mod, plain, run, dtype):
    """Random parameters, rounded to what the file stores. The change is about a quarter of the
    plain output: factors multiply, so each takes its root of what is missing."""
    own = dict(mod.named_parameters())
    factors = [k for k in own if is_factor(k)]
    for k in factors:
        own[k].data = d.normal(*own[k].shape)
    if "scalar" in own:
        own["scalar"].data.fill_(2.0)      # folded into a factor: a power of two is exact
    if form.dora:                          # m at its present size: then only the factors count
        mod.wd = False
    if factors:
        size = ((run() - plain).norm() / plain.norm()).item()
        for k in factors:
            own[k].data = rounded(own[k].data * (0.25 / size) ** (1 / len(factors)), dtype)
    mod.wd = form.dora
    for k, p in own.items():
        if k in factors or k == "scalar":
            continue
        z = d.normal(*p.shape)
        if k == "dora_scale":
            v = p.data * (1 + 0.1 * z)
        elif k == "rescale":
            v = 1 + 0.1 * z
        elif k == "oft_blocks":
            v = 0.05 * z
        elif form.name == "full":
            v = 0.25 * z * p[0].numel() ** -0.5 if k == "weight" else 0.1 * z
        else:                              # ia3, norm, glora
            v = 0.2 * z
        p.data = rounded(v, dtype)


def lycoris_case(d, form, layer, x, dtype, strength):
    """(tensors of the file, output at strength)"""
    f32 = form.name.startswith(("oft", "boft"))
    work = torch.float32 if f32 else torch.float64
    layer = layer.to(work)
    x = x.to(work)
    kw = {"lora_dim": 4, **form.kw}
    alpha = kw["lora_dim"] if form.alpha is None else form.alpha
    mod = form.cls("m", layer, 1.0, alpha=alpha, bypass_mode=False, **kw).to(work)
    mod.requires_grad_(False).eval()
    plain = layer(x)
    fill(d, form, mod, plain, lambda: mod.forward(x), dtype)
    mod.to(work)
    if form.name.startswith("boft"):
        mod.multiplier = strength
        y = mod.forward(x)
    else:
        y = plain + strength * (mod.forward(x) - plain)
    # Before FullModule joins a network its weight is the difference, but its state is not.
    state = ({"diff": mod.weight, "diff_b": mod.bias} if form.name == "full"
             else mod.state_dict())
    parts = {}
    for k, v in state.items():
        if v is None:
            continue
        if k == "alpha":
            if form.alpha is None:
                continue
            v = v.reshape(()).to(torch.float16 if form.name == "lokr-full-inf" else torch.float32)
        elif v.dtype.is_floating_point:
            v = v.to(dtype)
        parts[k] = v.detach().clone().contiguous()
    layer.to(torch.float64)
    return parts, plain.double(), y.double()


# --- PEFT ---

def peft_forms():
    import peft
    target = dict(target_modules=["m"])
    lora = dict(r=4, lora_alpha=2, init_lora_weights=False, **target)
    lokr = dict(decompose_factor=4, init_weights=False, **target)
    L, K, H = peft.LoraConfig, peft.LoKrConfig, peft.LoHaConfig
    return {
        "peft-lora": ("lin c1 c3 c3s2", lambda: L(**lora)),
        "peft-rslora": ("lin c3", lambda: L(use_rslora=True, **lora)),
        "peft-dora": ("lin c3", lambda: L(use_dora=True, **lora)),
        "peft-lora-bias": ("lin", lambda: L(lora_bias=True, **lora)),
        "peft-lora-pattern": ("lin", lambda: L(alpha_pattern={"m": 6}, **lora)),
        "peft-loha": ("lin c3", lambda: H(r=4, alpha=2, init_weights=False, **target)),
        "peft-loha-tucker": ("c3", lambda: H(r=3, alpha=2, use_effective_conv2d=True,
                                             init_weights=False, **target)),
        "peft-lokr": ("lin c1 c3", lambda: K(r=2, alpha=5, **lokr)),
        "peft-lokr-rank1": ("lin", lambda: K(r=1, alpha=3, **lokr)),
        "peft-lokr-full": ("lin c3", lambda: K(r=64, alpha=32, **lokr)),
        "peft-lokr-tucker": ("c3", lambda: K(r=2, alpha=3, use_effective_conv2d=True, **lokr)),
        "peft-lokr-both": ("lin", lambda: K(r=1, alpha=2, decompose_both=True,
                                            **{**lokr, "decompose_factor": -1})),
        "peft-oft": ("lin", lambda: peft.OFTConfig(r=0, oft_block_size=4, bias="none",
                                                   use_cayley_neumann=False, **target)),
        "peft-ia3": ("lin c3", lambda: peft.IA3Config(feedforward_modules=[], **target)),
        "peft-ia3-ff": ("lin c3", lambda: peft.IA3Config(feedforward_modules=["m"], **target)),
    }


def peft_fill(d, name, params, plain, run):
    """Random parameters, as fill(). At its start PEFT's magnitude is the weight's own norm, and
    its bias is zero."""
    factors = [n for n in params if any(t in n for t in ("lora_A", "lora_B.default.weight",
                                                         "hada_", "lokr_"))]
    for n in factors:
        params[n].data = d.normal(*params[n].shape) * (0.2 if "dora" in name else 1)
    held = {n: p.data.clone() for n, p in params.items() if n not in factors}
    for n in held:
        if n.endswith("bias"):
            params[n].data.zero_()
    size = ((run() - plain).norm() / plain.norm()).item() if factors else 0
    for n in factors:
        shrink = 1 if "dora" in name else (0.25 / size) ** (1 / len(factors))
        params[n].data = rounded(params[n].data * shrink, torch.float32)
    for n, at in held.items():
        z = d.normal(*at.shape)
        v = 1 + 0.2 * z if "ia3" in n else at * (1 + 0.1 * z) if "magnitude" in n else 0.05 * z
        params[n].data = rounded(v, torch.float32)


def peft_case(d, name, config, layer, x, strength):
    import peft
    root = nn.Module()
    root.m = layer
    root.forward = lambda v: root.m(v)
    plain = layer(x)
    model = peft.get_peft_model(root, config).double().eval()
    params = {n: p for n, p in model.named_parameters() if "base_layer" not in n}
    with torch.no_grad():
        peft_fill(d, name, params, plain, lambda: model(x))
        y = model(x)
    parts = {k: v.detach().float().clone().contiguous()
             for k, v in peft.get_peft_model_state_dict(model).items()}
    return parts, plain, plain + strength * (y - plain)


def plain_json(v):
    """What adapter_config.json holds of a config's fields."""
    if isinstance(v, dict):
        return {str(k): plain_json(w) for k, w in v.items()}
    if isinstance(v, (list, tuple, set)):
        return [plain_json(w) for w in v]
    return v if isinstance(v, (int, float, bool, type(None))) else str(v)


# --- cases ---

class Folder:
    def __init__(self):
        self.tensors, self.rows = {}, []

    def add(self, case, kind, layer, x, y0, y, adapters, config=None):
        """adapters: (family, strength, tensors)"""
        t = self.tensors
        t[f"{case}/W"], t[f"{case}/x"] = layer.weight.float(), x.float()
        if layer.bias is not None:
            t[f"{case}/bias"] = layer.bias.float()
        t[f"{case}/y0"], t[f"{case}/y"] = y0.float(), y.float()
        row = {"case": case, "type": {"lin": "linear", "gn": "norm", "ln": "norm"}.get(kind, "conv"),
               "shape": list(layer.weight.shape),
               "change": ((y - y0).norm() / y0.norm()).item(),
               "adapters": [{"family": f, "strength": s, "parts": sorted(p)} for f, s, p in adapters]}
        for i, (_, _, parts) in enumerate(adapters):
            for k, v in parts.items():
                t[f"{case}/a{i}/{k}"] = v
        if kind.startswith("c"):
            row.update(stride=layer.stride[0], padding=layer.padding[0])
        if row["type"] == "norm":
            row.update(groups=getattr(layer, "num_groups", 0), eps=layer.eps)
        if config is not None:
            row["adapter_config"] = config
        self.rows.append(row)

    def write(self, folder):
        save_file({k: v.detach().clone().contiguous() for k, v in self.tensors.items()},
                  os.path.join(folder, "layers.safetensors"))
        with open(os.path.join(folder, "layers.json"), "w") as f:
            f.write("[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n")


STRENGTHS = [1.0, 1.0, 0.7, -0.5, 1.3]


def add_lycoris(d, folder):
    forms = lycoris_forms()
    for name, form in forms.items():
        for kind in form.kinds:
            layer, x = make_layer(d, kind, sizes_for(d, form), form.name == "full" or None)
            s = 1.0 if "rescale" in name else d.pick(STRENGTHS)
            dtype = torch.float16 if name == "lokr-full-inf" else d.pick(TYPES)
            parts, y0, y = lycoris_case(d, form, layer, x, dtype, s)
            folder.add(f"{name}.{kind}", kind, layer, x, y0, y, [(name.split("-")[0], s, parts)])
    # Changes add up, each from the plain weight.
    plain = [f for n, f in forms.items() if not f.kw.get("decompose_both")
             and not n.startswith(("boft", "norm", "oft-rescale"))]
    for i in range(8):
        kind = d.pick(["lin", "c1", "c3"])
        stack = [d.pick([f for f in plain if kind in f.kinds]) for _ in range(2 + i % 3)]
        layer, x = make_layer(d, kind)
        total, adapters = 0, []
        for form in stack:
            s = d.pick(STRENGTHS)
            dtype = torch.float16 if form.name == "lokr-full-inf" else d.pick(TYPES)
            parts, y0, y = lycoris_case(d, form, layer, x, dtype, s)
            total = total + (y - y0)
            adapters.append((form.name.split("-")[0], s, parts))
        y0 = layer(x)
        name = "+".join(f.name for f in stack)
        folder.add(f"stack{i}-{name}.{kind}", kind, layer, x, y0, y0 + total, adapters)


def add_peft(d, folder):
    for name, (kinds, config) in peft_forms().items():
        for kind in kinds.split():
            # PEFT's lora_bias asks for a bias to add to
            layer, x = make_layer(d, kind, bias=True if name == "peft-lora-bias" else None)
            s, c = d.pick(STRENGTHS), config()
            parts, y0, y = peft_case(d, name, c, layer, x, s)
            folder.add(f"{name}.{kind}", kind, layer, x, y0, y, [(name.split("-")[1], s, parts)],
                       plain_json(c.to_dict()))


# --- whole networks ---

def make_models(scripts, seed, folder):
    spec = importlib.util.find_spec("open_clip")
    bpe = os.path.join(os.path.dirname(spec.origin), "bpe_simple_vocab_16e6.txt.gz")
    scripts = os.path.abspath(scripts)

    def run(script, *args):
        subprocess.run([sys.executable, os.path.join(scripts, script), *map(str, args)], check=True,
                       cwd=scripts, env={**os.environ, "OMP_NUM_THREADS": "1",
                                         "PYTHONDONTWRITEBYTECODE": "1"},
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for arch in ("sd15", "sd2", "sdxl"):
        checkpoint = os.path.join(folder, f"tiny_{arch}.safetensors")
        run("checkpoints.py", "--arch", arch, "--size", "tiny", "--dtype", "f16", "--seed", seed,
            "--out", checkpoint)
        run("goldens_model.py", "--checkpoint", checkpoint, "--bpe", bpe, "--seed", seed,
            "--only", "adapters", "--out", folder)
        # A stack drawn twice has one output, that of its last strengths.
        path = os.path.join(folder, f"adapters_{arch}.json")
        with open(path) as f:
            manifest = json.load(f)
        manifest["stacks"] = list({row["name"]: row for row in manifest["stacks"]}.values())
        with open(path, "w") as f:
            json.dump(manifest, f)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--program", required=True, help="kron-golden")
    ap.add_argument("--seed", type=int, default=None)
    ap.add_argument("--keep", metavar="DIR", help="leave the cases there")
    ap.add_argument("--models", metavar="DIR", help="whole networks too, by the scripts in DIR")
    ap.add_argument("--backend", default="cpu")
    a = ap.parse_args()
    seed = a.seed if a.seed is not None else int.from_bytes(os.urandom(4), "little")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    d, folder = Draw(seed), Folder()
    with torch.no_grad():
        add_lycoris(d, folder)
    add_peft(d, folder)
    with tempfile.TemporaryDirectory() as temp:
        where = a.keep or temp
        os.makedirs(where, exist_ok=True)
        where = os.path.abspath(where)
        folder.write(where)
        if a.models:
            make_models(a.models, seed, where)
        code = subprocess.run([a.program, where, "--backend", a.backend]).returncode
    print(f"{len(folder.rows)} layers by LyCORIS and PEFT; seed {seed} (--seed {seed} repeats them)")
    return code


if __name__ == "__main__":
    sys.exit(main())
