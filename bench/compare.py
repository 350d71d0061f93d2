#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""One UNet call of Kron against one of diffusers, in turns: both programs stay loaded, and each
round runs one call of each. Prints the ratio of the medians and saves CSV and JSON.

    bench/compare.py [--arch sd15,sdxl] [--size 512,1024] [--rounds 5] [--cases none,lokr]

A call during which other programs took more than --others of the processors' time is run again
(up to --retries times in all), so that a busy machine delays the result but does not bend it.
"""
import argparse
import csv
import datetime
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


def find_python():
    """The Python that has the peers, or None."""
    for python in (os.environ.get("KRON_PEERS_PYTHON"), str(BENCH / "peers/venv/bin/python")):
        if python and os.access(python, os.X_OK):
            return python
    return None


def machine_name():
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return cpu[1].strip() if cpu else os.uname().machine


def busy_seconds():
    """Seconds that all processors have worked, for anyone, steal included."""
    user, nice, system, _, _, irq, soft, steal = map(
        int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + soft + steal) / TICKS


class Program:
    """A program that runs one call for each line that it gets."""

    def __init__(self, name, command):
        self.name = name
        self.seconds, self.cpu, self.others = [], [], []
        self.spoiled = 0
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, bufsize=1)
        self.greeting = self.read().removeprefix("ready").strip()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"compare.py: {self.name} ended with status {self.process.wait()}")
        return line.strip()

    def own_seconds(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text()
        fields = text.rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def call(self, limit):
        """One call; False if others took too much of the machine meanwhile."""
        own, busy, start = self.own_seconds(), busy_seconds(), time.monotonic()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = float(self.read())
        own, busy = self.own_seconds() - own, busy_seconds() - busy
        others = max(0.0, busy - own) / (os.cpu_count() * (time.monotonic() - start))
        if others > limit:
            self.spoiled += 1
            return False
        self.seconds.append(seconds)
        self.cpu.append(own)
        self.others.append(others)
        return True

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def take_turns(programs, rounds, limit, retries):
    tries = 0
    while any(len(p.seconds) < rounds for p in programs):
        for p in programs:
            if len(p.seconds) >= rounds:
                continue
            last = tries >= retries * len(programs)
            p.call(1.0 if last else limit)
            tries += 1


def measure(args, arch, size, case, python):
    width, height = (size.split("x") * 2)[:2]
    threads = str(args.threads)
    programs = [Program("kron", [
        args.kron, "--serve", "--arch", arch, "--size", f"{width}x{height}", "--cases", case,
        "--threads", threads, "--cache", args.cache])]
    if python:
        programs.append(Program("diffusers", [
            python, str(BENCH / "peers/diffusers_unet.py"), "--arch", arch, "--width", width,
            "--height", height, "--threads", threads]))
    take_turns(programs, args.rounds, args.others, args.retries)
    for p in programs:
        p.close()
    kron, peer = programs[0], programs[1] if python else None
    row = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine_name(), "threads": args.threads, "arch": arch,
        "width": int(width), "height": int(height), "case": case, "rounds": args.rounds,
        "ratio": statistics.median(kron.seconds) / statistics.median(peer.seconds) if peer else None,
        "load": os.getloadavg()[0],
    }
    for p in programs:
        row |= {f"{p.name}_s": statistics.median(p.seconds), f"{p.name}_least_s": min(p.seconds),
                f"{p.name}_cpu_s": statistics.median(p.cpu),
                f"{p.name}_others": max(p.others), f"{p.name}_spoiled": p.spoiled}
    if peer:
        row["peer"] = peer.greeting
    return row


def show(row):
    what = f"{row['arch']:5} {row['width']}x{row['height']:<5} {row['case']:<11}"
    if row["ratio"] is None:
        print(f"{'-':>6}  {what} kron {row['kron_s']:7.3f} s   (no diffusers: see bench/peers/setup.sh)")
        return
    print(f"{row['ratio']:6.3f}  {what} kron {row['kron_s']:7.3f} s (CPU {row['kron_cpu_s']:6.2f})   "
          f"diffusers {row['diffusers_s']:7.3f} s (CPU {row['diffusers_cpu_s']:6.2f})   "
          f"others up to {100 * max(row['kron_others'], row['diffusers_others']):.0f} %, "
          f"{row['kron_spoiled'] + row['diffusers_spoiled']} calls spoiled, load {row['load']:.1f}",
          flush=True)


def save(rows, folder):
    folder.mkdir(parents=True, exist_ok=True)
    name = folder / f"compare-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    with open(f"{name}.json", "w") as f:
        json.dump(rows, f, indent=1)
    columns = list(dict.fromkeys(k for row in rows for k in row))
    with open(f"{name}.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(f"saved {name}.csv and .json")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--arch", default="sd15,sdxl")
    p.add_argument("--size", default="512")
    p.add_argument("--cases", default="none", help="of Kron, as in kron-bench --help")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--others", type=float, default=0.04)
    p.add_argument("--retries", type=int, default=20)
    p.add_argument("--kron", default=str(BENCH.parent / "build/bin/kron-bench"))
    p.add_argument("--cache", default=str(BENCH / "cache"))
    p.add_argument("--results", type=pathlib.Path, default=BENCH / "results")
    args = p.parse_args()
    python = find_python()
    print(f"{machine_name()}, {args.threads} threads, {datetime.date.today()}; one UNet call, "
          "batch 1; ratio = Kron / diffusers, below 1 is faster")
    rows = []
    try:
        for arch in args.arch.split(","):
            for size in args.size.split(","):
                for case in args.cases.split(","):
                    rows.append(measure(args, arch, size, case, python))
                    show(rows[-1])
    finally:
        if rows:
            save(rows, args.results)


if __name__ == "__main__":
    main()
