#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""All that docs/bench.md tells of, step by step: ./dev bench [--quick] [--resume FILE.json].

Each step is saved when it is done (bench/results/bench-DATE.json, .csv and .svg); --resume goes on
where a run stopped. --quick measures every bar of the project once, the shortest first, and lets a
busy machine delay it little. The whole takes hours.
"""
import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import bars
import compare
import plot

ROOT = compare.BENCH.parent
QUALITY = ROOT / "build/bin/kron-quality"
SIZES = ("512", "768", "1024", "1024x1536")
CASES = ["none"] + [f"{case}:{route}" for case in ("lokr", "lokr-split", "lora", "six")
                    for route in ("auto", "immediately", "at_runtime")]


# --- kinds of steps: each gives rows ---

def turns(args, what, arch, size, who, rounds=None):
    """Programs in turns; rounds: by contestant, or one number for all."""
    counts = rounds if isinstance(rounds, dict) else {w: rounds or args.rounds for w in who}
    rows = compare.measure(args, what, arch, size, who, counts)
    compare.show(rows)
    return rows


def case(args, arch, size, name):
    """One case of kron-bench: all times of a job, memory, buffers; the UNet with and without
    adapters in turns."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "case.json"
        run([args.kron, "--arch", arch, "--size", size, "--cases", name, "--threads",
             str(args.threads), "--cache", args.cache, "--json", str(path)])
        found = json.loads(path.read_text())
    rows = [{"what": "case", "arch": arch, "who": f"kron:{name}", "against": "kron",
             "machine": found["machine"], "threads": found["threads"], "date": found["date"],
             **{k: v for k, v in c.items() if k not in ("model", "case")},
             "seconds": c["unet_call_s"]} for c in found["cases"]]
    for r in rows:
        print(f"{r['ratio']:7.3f}  {arch:5} {size:<9} {r['who']:<28} {r['unet_call_s']:8.3f} s, "
              f"without {r['plain_call_s']:.3f}; guided {r['guided_step_s']:.2f}, "
              f"text {r['text_s']:.2f}, VAE {r['vae_decode_s']:.2f}; "
              f"starts in {r['start_s']:.2f} s; buffer "
              f"{r['unet_buffer_mb']:.1f} MB, kept beside it {r['unet_kept_mb']:.1f} MB, peak {r['peak_rss_mb']:.0f} MB, "
              f"{r['peak_anonymous_mb']:.0f} MB of it own", flush=True)
    return rows


def sd_cli(args, *options):
    """Seconds that a run took, and what it printed."""
    start = time.perf_counter()
    text = run([str(ROOT / "build/bin/sd-cli"), *options, "-t", str(args.threads)])
    return time.perf_counter() - start, text


def roofline(args, arch, size, compute=None):
    """The table of sd-cli --profile, of two steps without guidance."""
    width, height = (size.split("x") * 2)[:2]
    with tempfile.TemporaryDirectory() as folder:
        model = f"{args.cache}/{arch}-model.safetensors"
        _, text = sd_cli(args, "-m", model, "-p", "a horse", "-W", width, "-H", height, "--steps",
                         "2", "--cfg-scale", "1", "--profile", "-o", f"{folder}/a.png",
                         *(["--compute", compute] if compute else []))
    peak = re.search(r"now: ([\d.]+) GFLOP/s.*, ([\d.]+) GB/s", text)
    rows = []
    for line in text.split("longest, by shape:")[0].splitlines():
        found = re.match(r"(.{15}) (\w+) +(\d+) +([\d.]+) +([\d.]+) % +([\d.]+) +([\d.]+) +(\d+) %",
                         line)
        if found:
            rows.append({
                "what": "roofline", "arch": arch, "width": int(width), "height": int(height),
                "who": "kron" + (f"+{compute}" if compute else ""), "part": found[1].strip(),
                "kind": found[2], "calls": int(found[3]), "seconds": float(found[4]),
                "share": float(found[5]) / 100, "gflops": float(found[6]), "gbs": float(found[7]),
                "of_peak": float(found[8]) / 100, "peak_gflops": float(peak[1]),
                "peak_gbs": float(peak[2])})
    print("\n".join(f"        {line}" for line in text.splitlines() if not line.startswith("/")))
    return rows


def picture(args, compute=None, runs=3):
    """The shipped model from the start of the program to the PNG: that of ./dev demo."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            seconds.append(sd_cli(
                args, "-m", str(ROOT / "models/emoji-sd.safetensors"), "-p", "a cat face", "-W",
                "256", "-H", "256", "--steps", "20", "--cfg-scale", "5", "--sampling-method",
                "dpm++2m", "--scheduler", "karras", "-s", "101", "-o", f"{folder}/a.png",
                *(["--compute", compute] if compute else []))[0])
    row = {"what": "picture", "arch": "emoji", "width": 256, "height": 256,
           "who": "kron" + (f"+{compute}" if compute else ""),
           "seconds": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds),
           "turns": len(seconds)}
    print(f"         shipped model, prompt to PNG: {row['seconds']:.2f} s ({row['who']})")
    return [row]


def quality(args, arch, size):
    """How far int8 is from f32: errors of UNet calls, PSNR of pictures (tests/quality)."""
    model = ROOT / "models/emoji-sd.safetensors"
    if arch != "emoji":
        model = f"{args.cache}/{arch}-model.safetensors"
    pictures = ["--prompt", "a cat face", "--prompt", "a red car"] if arch == "emoji" else []
    text = run([str(QUALITY), str(model), "--size", size, "--threads", str(args.threads),
                *pictures])
    print("\n".join(f"        {line}" for line in text.splitlines()))
    errors = [float(e) / 100 for e in re.findall(r"relative error ([\d.]+) %", text)]
    psnr = [float(e) for e in re.findall(r"PSNR +([\d.]+) dB +(?!mean)", text)]
    return [{"what": "quality", "arch": arch, "width": int(size), "height": int(size),
             "who": "kron+int8", "worst_error": max(errors, default=None),
             "least_psnr_db": min(psnr, default=None)}]


def quantised(args, arch, kind):
    """The random model in another type, in the cache; made if it is not there."""
    path = pathlib.Path(args.cache) / f"{arch}-{kind}.gguf"
    if not path.exists():
        print(f"        making {path}", flush=True)
        sd_cli(args, "-M", "convert", "-m", f"{args.cache}/{arch}-model.safetensors", "--type",
               kind, "-o", str(path))
    return path


def against(args, arch, size, kind):
    """UNet calls of a quantised model in turns with f16, plain and with a LoKr."""
    text = run([args.kron, "--arch", arch, "--size", size, "--cases", "none,lokr", "--repeat",
                str(args.rounds), "--threads", str(args.threads), "--cache", args.cache,
                "--against", str(quantised(args, arch, kind))])
    print("\n".join(f"        {line}" for line in text.splitlines()))
    rows = []
    for name, with_s, second in re.findall(
            r"^\d+x\d+ +(\S+) +[\d.]+ +([\d.]+) +([\d.]+) ", text, re.MULTILINE):
        rows.append({"what": "against", "arch": arch, "width": int(size), "height": int(size),
                     "who": f"{kind}:{name}", "against": f"f16:{name}", "seconds": float(second),
                     "ratio": float(second) / float(with_s)})
    return rows


def peak(args, arch, size, kind):
    """Most memory that a whole run has resident, mapped files included."""
    model = quantised(args, arch, kind)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with open(args.results / "programs.log", "a") as log:
            process = subprocess.Popen(
                [str(ROOT / "build/bin/sd-cli"), "-m", str(model), "-p", "a horse", "-W", size,
                 "-H", size, "--steps", "1", "-t", str(args.threads), "-o", f"{folder}/a.png"],
                stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise compare.Gone(f"sd-cli with {model}: status {status}; see programs.log")
    row = {"what": "peak", "arch": arch, "width": int(size), "height": int(size), "who": kind,
           "seconds": time.perf_counter() - start, "peak_mb": usage.ru_maxrss * 1024 / 1e6}
    print(f"         {arch} {kind} at {size}: peak {row['peak_mb']:.0f} MB")
    return [row]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise compare.Gone(f"{' '.join(map(str, command))}: status {done.returncode}\n"
                           f"{done.stderr}")
    return done.stdout


# --- what is to be done ---

def quick_steps():
    """Those that decide a bar, the shortest first. SD1.5's programs fit into memory together; of
    SDXL's only two. What a bar that is missed asks for comes at the end (missed_steps)."""
    whole = ["kron", "kron+int8", "diffusers"]
    yield "picture", picture, (None, 2)
    yield "quality", quality, ("emoji", "256")
    yield "vae 512", turns, ("vae", "sd15", "512", ["kron", "diffusers"], 2)
    yield "unet sdxl 512", turns, ("unet", "sdxl", "512", whole, 3)
    yield ("unet sd15 512", turns,
           ("unet", "sd15", "512", [*whole, "sdcpp"],
            {"kron": 3, "kron+int8": 3, "diffusers": 3, "sdcpp": 1}))
    yield "lokr sdxl 512", turns, ("unet", "sdxl", "512", ["kron", "kron:lokr:at_runtime"], 3)
    yield "peak sdxl q4_0", peak, ("sdxl", "512", "q4_0")
    yield "against sdxl q8_0", against, ("sdxl", "512", "q8_0")
    yield ("sdcpp sdxl 512", turns,
           ("unet", "sdxl", "512", ["kron", "sdcpp"], {"kron": 2, "sdcpp": 1}))
    yield "unet sdxl 1024", turns, ("unet", "sdxl", "1024", whole, 2)
    yield "vae 1024", turns, ("vae", "sd15", "1024", ["kron", "diffusers"], 1)
    yield "buffer sdxl 1024x1536", turns, ("unet", "sdxl", "1024x1536", ["kron"], 1)
    yield "sdcpp sdxl 1024", turns, ("unet", "sdxl", "1024", ["kron", "sdcpp"], 1)


def missed_steps(rows):
    """The rooflines of bars that are missed."""
    for arch, size, compute in bars.rooflines_wanted(rows):
        yield (f"roofline {'int8 ' if compute else ''}{arch} {size}", roofline,
               (arch, size, compute))


def full_steps():
    pairs = [("kron:lokr", "diffusers:lycoris-lokr"), ("kron:lokr", "diffusers:peft-lokr"),
             ("kron:lokr-split", "diffusers:lycoris-lokr-split"),
             ("kron:lora", "diffusers:peft-lora"),
             ("kron:lokr:at_runtime", "sdcpp:lokr:at_runtime"),
             ("kron:lora:at_runtime", "sdcpp:lora:at_runtime"),
             ("kron:lora", "sdcpp:lora:immediately")]
    yield "picture", picture, ()
    yield "picture int8", picture, ("int8",)
    yield "quality", quality, ("emoji", "256")
    yield "peak sdxl q4_0", peak, ("sdxl", "512", "q4_0")
    yield "against sdxl q8_0", against, ("sdxl", "512", "q8_0")
    for arch in ("sd15", "sdxl"):
        yield f"quality {arch}", quality, (arch, "512")
    for size in SIZES:
        yield f"vae {size}", turns, ("vae", "sd15", size, ["kron", "diffusers"], 3)
        for arch in ("sd15", "sdxl"):
            yield (f"unet {arch} {size}", turns,
                   ("unet", arch, size, ["kron", "kron+int8", "diffusers"]))
            yield f"guided {arch} {size}", turns, ("guided", arch, size, ["kron", "diffusers"], 3)
            yield f"roofline {arch} {size}", roofline, (arch, size)
            yield f"roofline int8 {arch} {size}", roofline, (arch, size, "int8")
            yield (f"sdcpp {arch} {size}", turns,
                   ("unet", arch, size, ["kron", "sdcpp"], {"kron": 3, "sdcpp": 2}))
    for arch in ("sd15", "sdxl"):
        yield f"text {arch}", turns, ("text", arch, "512", ["kron", "diffusers"])
        for who in pairs:
            rounds = {w: 2 if w.startswith("sdcpp") else 3 for w in who}
            yield f"{who[0]} {who[1]} {arch}", turns, ("unet", arch, "512", list(who), rounds)
        for size in SIZES:
            for name in CASES:
                yield f"case {arch} {size} {name}", case, (arch, size, name)


def known_to(args, step):
    """Steps of int8 are left out where the programs do not have it."""
    if step[1] is quality:
        return QUALITY.exists()
    return "int8" not in step[2] or compare.kron_knows("--compute", args.kron)


def do_step(args, key, fn, what):
    print(f"{datetime.datetime.now():%H:%M:%S} {key}", flush=True)
    try:
        return [{"step": key} | row for row in fn(args, *what)]
    except compare.Gone as e:
        print(f"        failed: {e}", file=sys.stderr, flush=True)
        return []


def do_steps(args, steps, rows, name):
    """Those that are not in the rows yet, saved one by one; false if one failed."""
    done = {r["step"] for r in rows}
    ok = True
    for key, fn, what in steps:
        if key in done:
            continue
        more = do_step(args, key, fn, what)
        ok = ok and bool(more)
        rows += more
        if rows:
            compare.save(rows, name)
            plot.save(rows, f"{name}.svg")
    return ok


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--resume", type=pathlib.Path, help="the .json of a run that stopped")
    p.add_argument("--only", default="", help="steps whose name this regular expression finds")
    p.add_argument("--list", action="store_true", help="show the names of the steps")
    compare.add_options(p)
    args = p.parse_args()
    if args.quick:  # a turn or two that others disturbed are better than hours
        args.retries, args.budget = min(args.retries, 2), min(args.budget, 120.0)

    def chosen(steps):
        return [s for s in steps if re.search(args.only, s[0]) and known_to(args, s)]

    steps = chosen(quick_steps() if args.quick else full_steps())
    if args.list:
        print("\n".join(s[0] for s in steps))
        return
    rows = json.loads(args.resume.read_text()) if args.resume else []
    name = args.resume.with_suffix("") if args.resume else compare.new_name(args, "bench")
    print(f"{compare.machine_name()}, {args.threads} threads, {datetime.date.today()}; "
          "ratio: seconds over those of the first of each step; results in "
          f"{name}.json, .csv and .svg")
    ok = do_steps(args, steps, rows, name)
    if args.quick:
        ok = do_steps(args, [s for s in missed_steps(rows) if known_to(args, s)], rows, name) and ok
    print(bars.table(rows))
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
