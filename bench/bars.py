# SPDX-License-Identifier: MIT
"""The project's bars, held against what was measured: a table."""


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


def bars(rows):
    """(name, what was measured, the bar, whether more is better)"""
    for arch, side in (("sd15", 512), ("sdxl", 512), ("sdxl", 1024)):
        name = f"UNet call, {arch} {side}: times as fast as"
        yield (f"{name} diffusers f32",
               times_as_fast(rows, "kron", "diffusers", "unet", arch, side), 1.2, True)
        yield (f"{name} diffusers f32, with int8",
               times_as_fast(rows, "kron+int8", "diffusers", "unet", arch, side), 2.5, True)
        yield (f"{name} stable-diffusion.cpp",
               times_as_fast(rows, "kron", "sdcpp", "unet", arch, side), 4, True)
    errors = [100 * r["worst_error"] for r in rows if r.get("worst_error") is not None]
    yield "int8: worst relative error of a UNet call, %", max(errors, default=None), 3, False
    for side in (512, 768, 1024):
        fast = times_as_fast(rows, "kron", "diffusers", "vae", "sd15", side)
        if fast or side != 768:
            yield f"VAE decode, {side}: times as fast as diffusers f32", fast, 1, True
    for width, height, most in ((512, 512, 80), (1024, 1024, 240), (1024, 1536, 350)):
        row = next((r for r in rows if r.get("who") == "kron" and r.get("arch") == "sdxl" and
                    r.get("what") == "unet" and r.get("height") == height), None)
        yield (f"compute buffer of an SDXL UNet call, {width}x{height}, MB",
               value(row, "unet_buffer_mb"), most, False)
    starts = [r["start_s"] for r in rows if r.get("arch") == "sdxl" and r.get("who") == "kron" and
              r.get("what") == "unet" and r.get("start_s")]
    yield "SDXL: first step starts after, s (file in cache)", min(starts, default=None), 1, False
    yield ("shipped model, prompt to PNG, s",
           value(find(rows, what="picture", who="kron"), "seconds"), 5, False)
    lokr = find(rows, what="unet", arch="sdxl", width=512, who="kron:lokr:at_runtime",
                against="kron")
    yield ("UNet call with a run-time LoKr to one without, sdxl 512", value(lokr, "ratio"), 1.03,
           False)
    yield ("VAE decode: times as fast as stable-diffusion.cpp", vae_of_sdcpp(rows), 1, True)


def table(rows):
    lines = ["", f"{'bar':<72} {'measured':>9}  {'bar':>7}"]
    for name, measured, bar, more in bars(rows):
        if measured is None:
            shown, verdict = "-", "not measured"
        else:
            shown = f"{measured:.2f}"
            verdict = "met" if (measured >= bar if more else measured <= bar) else "MISSED"
        lines.append(f"{name:<72} {shown:>9}  {'>=' if more else '<='} {bar:<5} {verdict}")
    return "\n".join(lines)
