# SPDX-License-Identifier: MIT
"""The project's bars, held against what was measured: a table. Under a bar of speed that is missed
stand the kinds of operations that take the time, with the share of the roofline that they reach."""


def find(rows, **want):
    """The last row with these values."""
    for row in reversed(rows):
        if all(row.get(k) == v for k, v in want.items()):
            return row
    return None


def times_as_fast(rows, who, peer, what, arch, side):
    """How many times the peer's seconds are those of `who`, within one step; None if unknown."""
    for row in reversed(rows):
        same = row.get("what") == what and row.get("arch") == arch and row.get("width") == side
        if not same or row["who"] != peer:
            continue
        ours = find([r for r in rows if r.get("step") == row.get("step")], who=who, what=what,
                    width=side)
        if ours:
            return row["seconds"] / ours["seconds"]
    return None


def value(row, key, factor=1):
    return row[key] * factor if row and row.get(key) is not None else None


def vae_of_sdcpp(rows):
    peer = next((r for r in reversed(rows) if r["who"] == "sdcpp" and r.get("vae_s")), None)
    ours = find(rows, what="vae", who="kron", width=peer["width"]) if peer else None
    return peer["vae_s"] / ours["seconds"] if ours else None


class Bar:
    """roofline: (arch, size, compute, part) of the run that shows what stands in its way."""

    def __init__(self, name, measured, bar, more=False, roofline=None):
        self.name, self.measured, self.bar, self.more = name, measured, bar, more
        self.roofline = roofline

    def verdict(self):
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.bar if self.more else self.measured <= self.bar
        return "met" if met else "MISSED"


def speed(rows):
    for arch, side in (("sd15", 512), ("sdxl", 512), ("sdxl", 1024)):
        name = f"UNet call, {arch} {side}: times as fast as"
        for peer, text, who, bar in (
                ("diffusers", "diffusers f32", "kron", 1.2),
                ("diffusers", "diffusers f32, with int8", "kron+int8", 2.5),
                ("sdcpp", "stable-diffusion.cpp", "kron", 4)):
            compute = "int8" if who == "kron+int8" else None
            yield Bar(f"{name} {text}", times_as_fast(rows, who, peer, "unet", arch, side), bar,
                      True, (arch, str(side), compute, "unet"))
    for side in (512, 768, 1024):
        fast = times_as_fast(rows, "kron", "diffusers", "vae", "sd15", side)
        if fast or side != 768:
            yield Bar(f"VAE decode, {side}: times as fast as diffusers f32", fast, 1, True,
                      ("sd15", str(side), None, "vae decoder"))
    fast = vae_of_sdcpp(rows)
    if fast:
        yield Bar("VAE decode: times as fast as stable-diffusion.cpp", fast, 1, True,
                  ("sd15", "512", None, "vae decoder"))


def start_of_sdxl(rows):
    starts = [r["start_s"] for r in rows if r.get("arch") == "sdxl" and r.get("who") == "kron" and
              r.get("what") == "unet" and r.get("start_s")]
    return min(starts, default=None)  # the first may have read the file


def other(rows):
    errors = [100 * r["worst_error"] for r in rows if r.get("worst_error") is not None]
    yield Bar("int8: worst relative error of a UNet call, %", max(errors, default=None), 3)
    for width, height, most in ((512, 512, 80), (1024, 1024, 240), (1024, 1536, 350)):
        row = find(rows, who="kron", arch="sdxl", what="unet", width=width, height=height)
        yield Bar(f"compute buffer of an SDXL UNet call, {width}x{height}, MB",
                  value(row, "unet_buffer_mb"), most)
    yield Bar("SDXL: first step starts after, s (file in cache)", start_of_sdxl(rows), 1)
    yield Bar("shipped model, prompt to PNG, s",
              value(find(rows, what="picture", who="kron"), "seconds"), 5)
    lokr = find(rows, what="unet", arch="sdxl", width=512, who="kron:lokr:at_runtime",
                against="kron")
    yield Bar("UNet call with a run-time LoKr to one without, sdxl 512", value(lokr, "ratio"), 1.03)
    for case, text in (("none", "plain"), ("lokr", "with a LoKr")):
        row = find(rows, what="against", arch="sdxl", who=f"q8_0:{case}")
        yield Bar(f"UNet call of sdxl 512 in q8_0 to f16, {text}", value(row, "ratio"), 1.05)
    yield Bar("peak memory of an SDXL q4_0 run at 512, MB",
              value(find(rows, what="peak", who="q4_0"), "peak_mb"), 3000)


def bars(rows):
    return [*speed(rows), *other(rows)]


def rooflines_wanted(rows):
    """(arch, size, compute) of the runs that the bars that are missed ask for."""
    return list(dict.fromkeys(b.roofline[:3] for b in bars(rows)
                              if b.roofline and b.verdict() == "MISSED"))


def obstacles(rows, arch, size, compute, part):
    """Lines: the kinds of operations that take most of the part's time."""
    who = "kron" + (f"+{compute}" if compute else "")
    kinds = [r for r in rows if r.get("what") == "roofline" and r["arch"] == arch and
             r["width"] == int(size) and r["height"] == int(size) and r["who"] == who and
             r["part"] == part]
    whole = find(kinds, kind="all")
    if whole is None:
        return [f"    no roofline of {who}, {arch} {size}, in these results"]
    lines = [f"    roof {whole['peak_gflops']:.0f} GFLOP/s, {whole['peak_gbs']:.1f} GB/s; of it "
             f"in all {100 * whole['of_peak']:.0f} %"]
    for r in sorted(kinds, key=lambda r: -r["seconds"]):
        share = r["seconds"] / whole["seconds"]
        if r["kind"] != "all" and share >= 0.03:
            lines.append(f"    {r['kind']:<12} {100 * share:3.0f} % of the time at "
                         f"{100 * r['of_peak']:3.0f} % of the roof ({r['gflops']:.0f} GFLOP/s, "
                         f"{r['gbs']:.1f} GB/s)")
    return lines


def table(rows):
    lines = ["", f"{'bar':<72} {'measured':>9}  {'bar':>7}"]
    for b in bars(rows):
        shown = "-" if b.measured is None else f"{b.measured:.2f}"
        lines.append(f"{b.name:<72} {shown:>9}  {'>=' if b.more else '<='} {b.bar:<5} "
                     f"{b.verdict()}")
        if b.roofline and b.verdict() == "MISSED":
            lines += obstacles(rows, *b.roofline)
    return "\n".join(lines)
