#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""stable-diffusion.cpp, through stable-diffusion-cpp-python, for bench/compare.py: prints "ready"
and JSON when the model is loaded, then for each line read from stdin takes one step and prints its
seconds; at the end "done" and JSON with the seconds of the VAE and of the text encoder.

    sdcpp_turns.py --model FILE --what unet|guided --steps N [--warm N] [--lora NAME:MODE] ...

The --steps are those of one txt2img job, whose progress callback waits for the next line: a turn is
the time between two calls of it. The first --warm are not timed. When all are taken the job goes on
to the VAE, whose time is the one that the library logs ("decode_first_stage completed"), as
is the text encoder's ("get_learned_condition completed"). Where the
input ends sooner the program does too, and no picture is decoded.
"""
import argparse
import ctypes
import json
import os
import re
import sys
import time

import stable_diffusion_cpp
from importlib.metadata import version

# The bindings close the standard output while the library works.
OUT = os.fdopen(os.dup(sys.stdout.fileno()), "w")
TIMES = {"decode_first_stage": "vae_s", "get_learned_condition": "text_s"}


class Job:
    """Steps of one job: a turn for each line, --warm of them before the first line is read."""

    def __init__(self, steps, warm):
        self.steps, self.warm = steps, warm
        self.next_step, self.since, self.logged = 0, 0.0, {}

    def log(self, level, text, data):
        del level, data
        text = text.decode(errors="replace")
        found = re.search(r"(\w+) completed, taking ([\d.]+) ?(ms|s)", text)
        if found and found[1] in TIMES:
            self.logged[TIMES[found[1]]] = float(found[2]) / (1000 if found[3] == "ms" else 1)

    def progress(self, step, steps, _):
        """Called with step 0 before the first step, and by whatever else counts steps."""
        now = time.perf_counter()
        if steps != self.steps or step != self.next_step:
            return
        self.next_step += 1
        if step > self.warm:
            print(f"{now - self.since:.6f}", file=OUT, flush=True)
        if self.warm <= step < steps and not sys.stdin.readline():
            os._exit(0)  # an exception does not leave a callback
        self.since = time.perf_counter()


def draw(a, job):
    callback = stable_diffusion_cpp.sd_log_callback(job.log)
    stable_diffusion_cpp.sd_set_log_callback(callback, ctypes.c_void_p(0))
    prompt = "a photograph of an astronaut riding a horse"
    how = {}
    if a.lora:
        name, mode = a.lora.split(":")
        prompt += f"<lora:{name}:0.5>"
        how = {"lora_model_dir": a.lora_dir, "lora_apply_mode": mode}
    model = stable_diffusion_cpp.StableDiffusion(
        model_path=a.model, n_threads=a.threads, diffusion_flash_attn=True, vae_decode_only=True,
        verbose=False, **how)
    stable_diffusion_cpp.sd_set_log_callback(callback, ctypes.c_void_p(0))
    name = f"stable-diffusion-cpp-python {version('stable-diffusion-cpp-python')}, flash attention"
    print("ready", json.dumps({"name": name + (f", {a.lora}" if a.lora else "")}), file=OUT,
          flush=True)
    model.generate_image(
        prompt=prompt, width=a.width, height=a.height, sample_steps=a.steps, seed=1,
        sample_method="euler", cfg_scale=7 if a.what == "guided" else 1,
        progress_callback=job.progress)
    print("done", json.dumps(job.logged), file=OUT, flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", required=True)
    p.add_argument("--what", choices=("unet", "guided"), default="unet")
    p.add_argument("--lora", help="NAME:MODE of a file in --lora-dir; MODE as --lora-apply-mode")
    p.add_argument("--lora-dir")
    p.add_argument("--width", type=int, default=512)
    p.add_argument("--height", type=int, default=512)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--steps", type=int, default=2)
    p.add_argument("--warm", type=int, default=0)
    a = p.parse_args()
    draw(a, Job(a.steps, a.warm))


main()
