#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""UNet calls of diffusers, for bench/compare.py: prints "ready NAME", then for each line read from
stdin runs one call and prints its seconds. float32, channels_last, batch 1, random weights of the
full configuration.

    diffusers_unet.py --arch sd15|sdxl [--width 512] [--height 512] [--threads 2]
"""
import argparse
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


def build(arch):
    """Weights of usual size, so that no product runs on denormals or infinities."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**CONFIGS[arch])
    unet = unet.to_empty(device="cpu").eval().requires_grad_(False)
    for name, p in unet.named_parameters():
        if p.ndim > 1:
            reach = math.sqrt(3 / p[0].numel())
            p.uniform_(-reach, reach)
        else:
            p.fill_(0.01 if name.endswith("bias") else 1)
    return unet.to(memory_format=torch.channels_last)


def inputs(arch, width, height):
    x = torch.randn(1, 4, height // 8, width // 8).to(memory_format=torch.channels_last)
    context = torch.randn(1, 77, CONFIGS[arch]["cross_attention_dim"])
    more = {}
    if arch == "sdxl":
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        more["added_cond_kwargs"] = {"text_embeds": torch.randn(1, 1280), "time_ids": sizes}
    return (x, torch.tensor(500), context), more


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--arch", choices=CONFIGS, required=True)
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--height", type=int, default=512)
    p.add_argument("--threads", type=int, default=0)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    with torch.inference_mode():
        unet = build(a.arch)
        args, more = inputs(a.arch, a.width, a.height)
        out = unet(*args, **more).sample
        if not torch.isfinite(out).all():
            sys.exit("the UNet gave numbers that are not finite")
        print(f"ready diffusers {diffusers.__version__}, torch {torch.__version__}, float32, "
              f"channels_last, {torch.get_num_threads()} threads", flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            unet(*args, **more)
            print(f"{time.perf_counter() - start:.6f}", flush=True)


main()
