#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Kron against its peers, and against itself with adapters, in turns: all programs stay loaded, and
each round takes one turn of each. Prints ratios of medians and saves CSV and JSON.

    bench/compare.py [--what unet] [--arch sd15,sdxl] [--size 512,1024] [--rounds 5]
                     [--who kron,diffusers]

--what: unet (one call), guided (a step with guidance), text (encoders), vae (decoding).
--who:  kron[:CASE[:ROUTE]][+COMPUTE]    CASE none, lokr, lokr-split, lora, six; ROUTE auto,
                                         immediately, at_runtime; COMPUTE int8
        diffusers[:ADAPTER]              ADAPTER lycoris-lokr, lycoris-lokr-split, peft-lora,
                                         peft-lokr
        sdcpp[:FILE[:MODE]]              FILE lokr, lokr-split, lora; MODE as ROUTE
The first one is what the others are compared with. Those that are not installed are left out.

A turn during which other programs took more than --others of the processors' time is taken again
(up to --retries times in all), so that a busy machine delays the result but does not bend it.
docs/bench.md says what a turn of each is.
"""
import argparse
import csv
import datetime
import functools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

BENCH = pathlib.Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")


# --- the machine ---

def machine_name():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return cpu[1].strip() if cpu else os.uname().machine


def busy_seconds():
    """Seconds that all processors have worked, for anyone, steal included."""
    user, nice, system, _, _, irq, soft, steal = map(
        int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


# --- peers ---

PEERS = {"diffusers": ("KRON_PEERS_PYTHON", "venv", "diffusers"),
         "sdcpp": ("KRON_SDCPP_PYTHON", "venv", "stable_diffusion_cpp")}


@functools.cache
def peer_python(peer):
    """The Python that has a peer, or None."""
    variable, folder, module = PEERS[peer]
    for python in (os.environ.get(variable), str(BENCH / "peers" / folder / "bin/python")):
        if python and os.access(python, os.X_OK):
            has = subprocess.run([python, "-c", f"import importlib.util as u, sys;"
                                  f"sys.exit(u.find_spec('{module}') is None)"], check=False)
            if has.returncode == 0:
                return python
    return None


@functools.cache
def kron_knows(option, kron):
    text = subprocess.run([kron, "--help"], capture_output=True, text=True, check=False).stdout
    return option in text


def command(args, who, what, arch, width, height, rounds):
    """The command of a contestant, or None if it is not there or cannot do that."""
    name, _, more = who.partition(":")
    size = ["--width", str(width), "--height", str(height)]
    if name.startswith("kron"):
        case, _, compute = who.partition("+")
        case = case.partition(":")[2] or "none"
        if compute and not kron_knows("--compute", args.kron):
            return None
        return [args.kron, "--serve", what, "--arch", arch, "--size", f"{width}x{height}",
                "--cases", case, "--threads", str(args.threads), "--cache", args.cache,
                *(["--compute", compute] if compute else [])]
    python = peer_python(name)
    if python is None:
        return None
    if name == "diffusers":
        return [python, str(BENCH / "peers/diffusers_turns.py"), "--arch", arch, "--what", what,
                *size, "--threads", str(args.threads), *(["--adapter", more] if more else [])]
    if what not in ("unet", "guided"):
        return None
    lora, _, mode = more.partition(":")
    # One step more than it is asked for: it ends before its VAE.
    steps = rounds + args.sdcpp_warm + (not decodes(who, width, height))
    return [python, str(BENCH / "peers/sdcpp_turns.py"), "--what", what, *size, "--threads",
            str(args.threads), "--model", f"{args.cache}/{arch}-model.safetensors",
            "--steps", str(steps), "--warm", str(args.sdcpp_warm),
            *(["--lora", f"{arch}-{lora}:{mode or 'at_runtime'}", "--lora-dir", args.cache]
              if lora else [])]


def decodes(who, width, height):
    """stable-diffusion.cpp goes on to its VAE where that takes less than a minute."""
    return who.startswith("sdcpp") and width * height <= 512 * 512


class Gone(Exception):
    """A program ended when it should not have."""


class Program:
    """A program that takes one turn for each line that it gets."""

    def __init__(self, who, line, log):
        self.who = who
        self.seconds, self.cpu, self.others = [], [], []
        self.spoiled = 0
        self.extra = {}
        self.peak = {}
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=log, text=True, bufsize=1)

    def read(self):
        line = self.process.stdout.readline()
        while line and line.split()[:1] not in (["ready"], ["done"]) and \
                not re.fullmatch(r"[\d.]+\n?", line):
            line = self.process.stdout.readline()  # libraries that print what nobody asked for
        if not line:
            raise Gone(f"{self.who} ended with status {self.process.wait()}; its messages are in "
                       "bench/results/programs.log")
        return line.strip()

    def greet(self):
        self.extra = json.loads(self.read().removeprefix("ready"))

    def own_seconds(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = text.rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def turn(self, limit):
        """One turn; it does not count if others took too much of the machine meanwhile."""
        own, busy, start = self.own_seconds(), busy_seconds(), time.monotonic()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = float(self.read())
        own, busy = self.own_seconds() - own, busy_seconds() - busy
        others = max(0.0, busy - own) / (os.cpu_count() * (time.monotonic() - start))
        if others > limit:
            self.spoiled += 1
            return
        self.seconds.append(seconds)
        self.cpu.append(own)
        self.others.append(others)

    def note_memory(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        for key, name in (("VmHWM", "peak_mb"), ("RssAnon", "anonymous_mb")):
            found = re.search(rf"{key}:\s*(\d+) kB", text)
            if found:
                self.extra[name] = round(int(found[1]) * 1024 / 1e6, 1)

    def close(self, whole):
        """whole: its last turn was its last step, so that it goes on to the end of its job."""
        if self.process.poll() is None and self.seconds:
            self.note_memory()
        try:
            self.process.stdin.close()
            if whole:
                self.extra |= json.loads(self.read().removeprefix("done"))
        except (OSError, Gone):
            pass
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def take_turns(programs, rounds, limit, retries, budget):
    """rounds: of each program. Those of stable-diffusion.cpp are the steps of a job: no retries.
    No round begins after `budget` seconds, as soon as each program has a turn that counts."""
    tries, start = 0, time.monotonic()
    while any(len(p.seconds) < rounds[p.who] for p in programs):
        late = time.monotonic() - start > budget
        if late and all(p.seconds for p in programs):
            return
        for p in programs:
            if len(p.seconds) >= (1 if late else rounds[p.who]):
                continue
            last = tries >= retries * len(programs) or p.who.startswith("sdcpp")
            p.turn(1.0 if last else limit)
            tries += 1


# --- one measurement ---

def measure(args, what, arch, size, who, rounds=None):
    """Rows, one for each contestant that is there; the first is what the others are held against.
    rounds: other numbers than args.rounds, by contestant."""
    width, height = map(int, (str(size).split("x") * 2)[:2])
    counts = {w: (rounds or {}).get(w, args.rounds) for w in who}
    args.results.mkdir(parents=True, exist_ok=True)
    programs = []
    with open(args.results / "programs.log", "a") as log:
        try:
            for w in who:
                line = command(args, w, what, arch, width, height, counts[w])
                if line is None:
                    print(f"        {w}: not here, left out", flush=True)
                    continue
                print(" ".join(line), file=log, flush=True)
                programs.append(Program(w, line, log))
                if len(programs) == 1:  # its start is a bar: nothing else loads meanwhile
                    programs[0].greet()
            for p in programs[1:]:
                p.greet()
            take_turns(programs, counts, args.others, args.retries, args.budget)
        finally:
            for p in programs:
                p.close(decodes(p.who, width, height) and len(p.seconds) == counts[p.who])
    return [row_of(args, what, arch, width, height, p, programs[0]) for p in programs]


def row_of(args, what, arch, width, height, p, first):
    seconds = statistics.median(p.seconds)
    row = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine_name(), "threads": args.threads, "what": what, "arch": arch,
        "width": width, "height": height, "who": p.who, "against": first.who,
        "ratio": seconds / statistics.median(first.seconds), "seconds": seconds,
        "least_s": min(p.seconds), "most_s": max(p.seconds), "turns": len(p.seconds),
        "cpu_s": statistics.median(p.cpu), "others": max(p.others), "spoiled": p.spoiled,
        "load": os.getloadavg()[0],
    }
    return row | {("program" if k == "name" else k): v for k, v in p.extra.items()}


def show(rows):
    for r in rows:
        notes = [f"{r['least_s']:.3f} to {r['most_s']:.3f} in {r['turns']}"]
        for key, text in (("peak_mb", "peak {:.0f} MB"), ("anonymous_mb", "{:.0f} MB of it own"),
                          ("unet_buffer_mb", "buffer {:.1f} MB"),
                          ("unet_kept_mb", "kept beside it {:.1f} MB"), ("start_s", "starts in {:.2f} s"),
                          ("vae_s", "its VAE {:.2f} s"), ("text_s", "its text {:.2f} s")):
            if r.get(key):
                notes.append(text.format(r[key]))
        notes.append(f"others up to {100 * r['others']:.0f} %, {r['spoiled']} spoiled")
        print(f"{r['ratio']:7.3f}  {r['what']:6} {r['arch']:5} {r['width']}x{r['height']:<5} "
              f"{r['who']:<28} {r['seconds']:8.3f} s  ({'; '.join(notes)})", flush=True)


# --- files ---

def save(rows, name):
    """name.json and name.csv, each whole at any time."""
    name.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with open(f"{name}.json.part", "w") as f:
        json.dump(rows, f, indent=1)
    with open(f"{name}.csv.part", "w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    for ending in (".json", ".csv"):
        os.replace(f"{name}{ending}.part", f"{name}{ending}")


def new_name(args, kind):
    return args.results / f"{kind}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


# --- the program ---

def add_options(p):
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--others", type=float, default=0.04,
                   help="share of the processors that others may take during a turn (0.04)")
    p.add_argument("--retries", type=int, default=20)
    p.add_argument("--budget", type=float, default=float("inf"), help="seconds after which a step "
                   "takes no further round, as soon as each program took a turn (no end)")
    p.add_argument("--sdcpp-warm", type=int, default=0,
                   help="steps of stable-diffusion.cpp that are not timed (0)")
    p.add_argument("--kron", default=str(BENCH.parent / "build/bin/kron-bench"))
    p.add_argument("--cache", default=str(BENCH / "cache"))
    p.add_argument("--results", type=pathlib.Path, default=BENCH / "results")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--what", default="unet")
    p.add_argument("--arch", default="sd15,sdxl")
    p.add_argument("--size", default="512")
    p.add_argument("--who", default="kron,diffusers")
    add_options(p)
    args = p.parse_args()
    rows, name = [], new_name(args, "compare")
    print(f"{machine_name()}, {args.threads} threads, {datetime.date.today()}; batch 1; ratio: "
          f"seconds over those of {args.who.split(',')[0]}")
    for what in args.what.split(","):
        for arch in args.arch.split(","):
            for size in args.size.split(","):
                try:
                    more = measure(args, what, arch, size, args.who.split(","))
                except Gone as e:
                    sys.exit(f"compare.py: {e}")
                show(more)
                rows += more
                save(rows, name)
    print(f"saved {name}.csv and .json")


if __name__ == "__main__":
    main()
