#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""diffusers for bench/compare.py: takes one turn untimed, prints "ready" and JSON, then for each
line read from stdin takes a turn and prints its seconds. float32, channels_last, random weights of
the full configuration.

    diffusers_turns.py --arch sd15|sdxl --what unet|guided|text|vae [--adapter NAME] ...

Adapters of all linear layers and convolutions of the UNet: lycoris-lokr, lycoris-lokr-split (factor
8, rank 16, in bypass mode: the branch is computed on activations), peft-lora (rank 16), peft-lokr.
"""
import argparse
import json
import math
import sys
import time

import diffusers
import torch

CONFIGS = {
    "sd15": dict(
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768, attention_head_dim=8),
    "sdxl": dict(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816),
}
VAE = dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
           down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
              num_attention_heads=12, projection_dim=768, hidden_act="quick_gelu")
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
              num_attention_heads=20, projection_dim=1280, hidden_act="gelu")
LOKR_FACTOR, RANK = 8, 16


def random_weights(model):
    """Weights of usual size, so that no product runs on denormals or infinities. One block of
    random numbers is used again and again: drawing 2.6 G takes longer than the measurement."""
    block = torch.rand(1_000_003) * 2 - 1
    for name, p in model.named_parameters():
        if p.ndim < 2:
            p.fill_(0.01 if name.endswith("bias") else 1)
            continue
        flat, reach = p.view(-1), math.sqrt(3 / p[0].numel())
        for at in range(0, flat.numel(), block.numel()):
            part = flat[at:at + block.numel()]
            torch.mul(block[:part.numel()], reach, out=part)


def build(make):
    with torch.device("meta"):
        model = make()
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    random_weights(model)
    for name, b in model.named_buffers():
        if name.endswith("position_ids"):
            b.copy_(torch.arange(b.numel()).view_as(b))
    return model


# --- adapters ---

def changed_layers(unet):
    return [(name, m) for name, m in unet.named_modules()
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]


def add_lycoris(unet, split):
    from lycoris.modules.lokr import LokrModule
    made = []
    for name, layer in changed_layers(unet):
        m = LokrModule("lycoris_" + name.replace(".", "_"), layer, 0.5, lora_dim=RANK, alpha=RANK,
                       factor=LOKR_FACTOR, full_matrix=not split, bypass_mode=True)
        m.requires_grad_(False).eval()
        for p in m.parameters():
            p.uniform_(-0.05, 0.05) if p.ndim > 0 else p.fill_(1)
        m.apply_to()
        made.append(m)
    return made


def add_peft(unet, kind):
    import peft
    names = [name for name, _ in changed_layers(unet)]
    if kind == "lora":
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
    else:
        config = peft.LoKrConfig(r=4096, alpha=4096, decompose_factor=LOKR_FACTOR,
                                 target_modules=names)
    unet = peft.inject_adapter_in_model(config, unet)
    unet.requires_grad_(False).eval()
    for name, p in unet.named_parameters():
        if "lora_" in name or "lokr_" in name:
            p.uniform_(-0.05, 0.05)
    return unet


def add_adapter(unet, name):
    if name in ("lycoris-lokr", "lycoris-lokr-split"):
        return add_lycoris(unet, name.endswith("split"))
    return add_peft(unet, name.removeprefix("peft-"))


# --- turns: each gives a function without arguments ---

def unet_turn(a, batch):
    config = CONFIGS[a.arch]
    unet = build(lambda: diffusers.UNet2DConditionModel(**config))
    unet = unet.to(memory_format=torch.channels_last)
    kept = add_adapter(unet, a.adapter) if a.adapter else None
    x = torch.randn(batch, 4, a.height // 8, a.width // 8).to(memory_format=torch.channels_last)
    context = torch.randn(batch, 77, config["cross_attention_dim"])
    more = {}
    if a.arch == "sdxl":
        sizes = torch.tensor([[a.height, a.width, 0, 0, a.height, a.width]] * batch).float()
        more["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 1280), "time_ids": sizes}

    def turn(kept=kept):
        out = unet(x, torch.tensor(500), context, **more).sample
        return out if batch == 1 else out[:1] + 7 * (out[1:] - out[:1])
    return turn


def text_turn(a):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    first = build(lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L)))
    second = None
    if a.arch == "sdxl":
        second = build(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G)))
    ids = torch.randint(0, 49000, (1, 77))

    def turn():
        out = first(ids, output_hidden_states=True).hidden_states[-2]
        return torch.cat([out, second(ids, output_hidden_states=True).hidden_states[-2]],
                         dim=-1) if second else out
    return turn


def vae_turn(a):
    vae = build(lambda: diffusers.AutoencoderKL(**VAE)).to(memory_format=torch.channels_last)
    latent = torch.randn(1, 4, a.height // 8, a.width // 8)
    latent = latent.to(memory_format=torch.channels_last)
    return lambda: vae.decode(latent).sample


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--arch", choices=CONFIGS, required=True)
    p.add_argument("--what", choices=("unet", "guided", "text", "vae"), default="unet")
    p.add_argument("--adapter", choices=("lycoris-lokr", "lycoris-lokr-split", "peft-lora",
                                         "peft-lokr"))
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--height", type=int, default=512)
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    with torch.inference_mode():
        if a.what in ("unet", "guided"):
            turn = unet_turn(a, 2 if a.what == "guided" else 1)
        else:
            turn = text_turn(a) if a.what == "text" else vae_turn(a)
        if not torch.isfinite(turn()).all():
            sys.exit("diffusers gave numbers that are not finite")
        name = f"diffusers {diffusers.__version__}, torch {torch.__version__}, float32"
        if a.adapter:
            name += f", {a.adapter}"
        print("ready", json.dumps({"name": name}), flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            turn()
            print(f"{time.perf_counter() - start:.6f}", flush=True)


main()
