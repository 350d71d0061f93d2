#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes samplers.json: whole runs of every sampler on a network that is known in closed form.

    python make_samplers.py

The data are a mixture of two normal distributions per element, for which the best estimate of the
latent, and so the network's output, is a formula. Each sampler is written here as its paper or
k-diffusion states it, in float64, and not as the engine has it (which uses that most of them are
sums of few terms): in lambda = -log sigma where the paper is, DDIM with the alphas. Where
diffusers has the method, the result is compared with diffusers' own scheduler on the same network
(largest relative difference printed, 1e-4 allowed: its tables are float32).

A row: sampler, schedule, prediction, eta (-1: the sampler's own), sigmas, final. Start, mixture
and noise are at the top; dpm++sde takes two noise vectors a step, in order.
"""
import json
import math
import os

import numpy as np

N = 12
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
A = np.cumprod(1 - BETAS)
LEVELS = np.sqrt((1 - A) / A)
rng = np.random.default_rng(20)
START = rng.standard_normal(N).astype(np.float32)
NOISE = rng.standard_normal((24, N)).astype(np.float32)
MEANS = np.round(rng.standard_normal((2, N)), 3)
WIDTH = 0.4


def t_to_sigma(t):
    return float(np.exp(np.interp(t, np.arange(1000), np.log(LEVELS))))


def estimate(x, s):
    """E[latent | x] of the mixture at noise level s."""
    var = WIDTH**2 + s * s
    logw = -((x - MEANS) ** 2) / (2 * var)
    w = np.exp(logw - logw.max(0))
    w /= w.sum(0)
    return (w * (MEANS + (x - MEANS) * WIDTH**2 / var)).sum(0)


class Noise:
    def __init__(self):
        self.at = 0

    def __call__(self):
        self.at += 1
        return NOISE[self.at - 1].astype(np.float64)


# --- schedules ---

def sigmas_of(name, n):
    lo, hi = LEVELS[0], LEVELS[-1]
    if name == "discrete":
        s = [t_to_sigma(t) for t in np.linspace(999, 0, n)]
    elif name == "karras":
        s = (hi ** (1 / 7) + np.linspace(0, 1, n) * (lo ** (1 / 7) - hi ** (1 / 7))) ** 7
    elif name == "sgm_uniform":
        s = [t_to_sigma(t) for t in np.linspace(999, 0, n + 1)[:-1]]
    return np.append(s, 0.0)


# --- samplers: f(x, sigma) is the estimate ---

def ancestral(a, b, eta):
    up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
    return (b**2 - up**2) ** 0.5, up


def euler(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        x = x + (x - f(x, a)) / a * (b - a)
    return x


def euler_a(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        down, up = ancestral(a, b, eta)
        x = x + (x - f(x, a)) / a * (down - a)
        if b > 0:
            x = x + z() * up
    return x


def heun(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        d = (x - f(x, a)) / a
        y = x + d * (b - a)
        if b > 0:
            e = (y - f(y, b)) / b
            y = x + (d + e) / 2 * (b - a)
        x = y
    return x


def dpm2(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        d = (x - f(x, a)) / a
        if b == 0:
            x = x + d * (b - a)
            continue
        m = math.exp((math.log(a) + math.log(b)) / 2)
        y = x + d * (m - a)
        x = x + (y - f(y, m)) / m * (b - a)
    return x


def dpmpp_2s_a(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        d = f(x, a)
        down, up = ancestral(a, b, eta)
        if down == 0:
            x = x + (x - d) / a * (down - a)
        else:
            t, t2 = -math.log(a), -math.log(down)
            h = t2 - t
            m = t + h / 2
            y = math.exp(-m) / math.exp(-t) * x - math.expm1(-h / 2) * d
            x = math.exp(-t2) / math.exp(-t) * x - math.expm1(-h) * f(y, math.exp(-m))
        if b > 0:
            x = x + z() * up
    return x


def dpmpp_2m(f, x, s, z, eta):
    old = None
    for i, (a, b) in enumerate(zip(s, s[1:])):
        d = f(x, a)
        if b == 0:
            x = d
            continue
        t, t2 = -math.log(a), -math.log(b)
        h = t2 - t
        dd = d
        if old is not None:
            r = (t + math.log(s[i - 1])) / h
            dd = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
        x = math.exp(-t2) / math.exp(-t) * x - math.expm1(-h) * dd
        old = d
    return x


def dpmpp_2mv2(f, x, s, z, eta):
    old = None
    for i, (a, b) in enumerate(zip(s, s[1:])):
        d = f(x, a)
        if b == 0:
            x = d
            continue
        h = math.log(a) - math.log(b)
        if old is None:
            x = b / a * x - math.expm1(-h) * d
        else:
            last = math.log(s[i - 1]) - math.log(a)
            r = max(h, last) / min(h, last)
            x = b / a * x - math.expm1(-(h + last) / 2) * ((1 + 1 / (2 * r)) * d - 1 / (2 * r) * old)
        old = d
    return x


def dpmpp_2m_sde(f, x, s, z, eta):
    old = None
    for i, (a, b) in enumerate(zip(s, s[1:])):
        d = f(x, a)
        if b == 0:
            x = d
            continue
        h = math.log(a) - math.log(b)
        k = h * (1 + eta)
        x = b / a * math.exp(-eta * h) * x - math.expm1(-k) * d
        if old is not None:
            r = (math.log(s[i - 1]) - math.log(a)) / h
            x = x - 0.5 * math.expm1(-k) / r * (d - old)
        if eta:
            x = x + z() * b * (-math.expm1(-2 * eta * h)) ** 0.5
        old = d
    return x


def dpmpp_sde(f, x, s, z, eta):
    """The two noises of a step are increments of one Brownian motion with sigma as its time."""
    for a, b in zip(s, s[1:]):
        d = f(x, a)
        if b == 0:
            x = x + (x - d) / a * (b - a)
            continue
        t, t2 = -math.log(a), -math.log(b)
        m = math.exp(-(t + (t2 - t) / 2))
        w1, w2 = z() * (a - m) ** 0.5, z() * (m - b) ** 0.5
        down, up = ancestral(a, m, eta)
        y = down / a * x - math.expm1(t + math.log(down)) * d + w1 / (a - m) ** 0.5 * up
        d = f(y, m)
        down, up = ancestral(a, b, eta)
        x = down / a * x - math.expm1(t + math.log(down)) * d + (w1 + w2) / (a - b) ** 0.5 * up
    return x


def lcm(f, x, s, z, eta):
    for a, b in zip(s, s[1:]):
        x = f(x, a)
        if b > 0:
            x = x + b * z()
    return x


def ipndm(f, x, s, z, eta):
    past = []
    for a, b in zip(s, s[1:]):
        d = f(x, a)
        past = [(x - d) / a] + past[:3]
        w = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]][len(past) - 1]
        x = x + (b - a) * sum(c * e for c, e in zip(w, past)) if b > 0 else d
    return x


def ddim(f, x, s, z, eta):
    """x and the result at unit variance; s only tells the timesteps."""
    alpha = [1 / (1 + v * v) for v in s]
    for a, b in zip(alpha, alpha[1:]):
        x0 = f(x / a**0.5, ((1 - a) / a) ** 0.5)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        dev = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
        x = b**0.5 * x0 + (1 - b - dev**2) ** 0.5 * eps
        if eta:
            x = x + dev * z()
    return x


def uni_pc(f, x, s, z, eta):
    """Zhao et al. 2023, algorithms 1 and 2 for data prediction, order 2, B = e^-h - 1; solving the
    small linear systems as they stand there."""
    alpha = [1 / (1 + v * v) ** 0.5 for v in s]
    dev = [v * a for v, a in zip(s, alpha)]
    lam = [-math.log(v) if v > 0 else math.inf for v in s]
    n = len(s) - 1
    m, before, order = [], None, 0

    def update(i, i0, x, order, now):
        """From level i0 to i; `now` is the estimate at i (corrector) or None (predictor)."""
        h = lam[i] - lam[i0]
        b_h = math.expm1(-h)
        base = dev[i] / dev[i0] * x - alpha[i] * b_h * m[i0]
        r, d = [], []
        for k in range(1, order):
            r.append((lam[i0 - k] - lam[i0]) / h)
            d.append((m[i0 - k] - m[i0]) / r[-1])
        if now is not None:
            r.append(1.0)
            d.append(now - m[i0])
        if not d:
            return base
        q = len(d)
        phi, rhs, fact = b_h / -h - 1, [], 1
        for k in range(1, q + 1):
            rhs.append(phi * fact / b_h)
            fact *= k + 1
            phi = phi / -h - 1 / fact
        if q == 1:
            rho = [0.5]
        else:
            rho = np.linalg.solve([[v**k for v in r] for k in range(q)], rhs)
        return base - alpha[i] * b_h * sum(c * e for c, e in zip(rho, d))

    for i in range(n):
        now = f(x / alpha[i], s[i])
        if i > 0:
            x = update(i, i - 1, before, order, now)
        m.append(now)
        order = min(2, n - i, i + 1)
        before = x
        x = update(i + 1, i, x, order, None)
    return x


UNIT = {"ddim", "ddim_trailing", "uni_pc"}


def ddim_sigmas(n):
    return [LEVELS[1 + i * (1000 // n)] for i in range(n)][::-1] + [LEVELS[0]]


def trailing_sigmas(n):
    return [LEVELS[int(t) - 1] for t in np.arange(1000, 0, -1000 / n).round()] + [LEVELS[0]]


def uni_pc_sigmas(n):
    return [LEVELS[int(t)] for t in np.linspace(0, 999, n + 1).round()[::-1][:-1]] + [0.0]


def plan():
    yield "euler", euler, "discrete", 6, -1, sigmas_of
    yield "euler", euler, "karras", 9, -1, sigmas_of
    yield "euler_a", euler_a, "discrete", 6, -1, sigmas_of
    yield "euler_a", euler_a, "karras", 7, 0.6, sigmas_of
    yield "heun", heun, "karras", 5, -1, sigmas_of
    yield "dpm2", dpm2, "karras", 6, -1, sigmas_of
    yield "dpm++2s_a", dpmpp_2s_a, "karras", 6, -1, sigmas_of
    yield "dpm++2s_a", dpmpp_2s_a, "discrete", 5, 0.0, sigmas_of
    yield "dpm++2m", dpmpp_2m, "karras", 8, -1, sigmas_of
    yield "dpm++2m", dpmpp_2m, "discrete", 1, -1, sigmas_of
    yield "dpm++2mv2", dpmpp_2mv2, "discrete", 8, -1, sigmas_of
    yield "dpm++2m_sde", dpmpp_2m_sde, "karras", 8, -1, sigmas_of
    yield "dpm++2m_sde", dpmpp_2m_sde, "karras", 8, 0.5, sigmas_of
    yield "dpm++sde", dpmpp_sde, "karras", 7, -1, sigmas_of
    yield "dpm++sde", dpmpp_sde, "discrete", 5, 0.0, sigmas_of
    yield "lcm", lcm, "sgm_uniform", 4, -1, sigmas_of
    yield "ipndm", ipndm, "discrete", 8, -1, sigmas_of
    yield "ddim", ddim, "discrete", 7, -1, lambda _, n: ddim_sigmas(n)
    yield "ddim", ddim, "discrete", 6, 0.8, lambda _, n: ddim_sigmas(n)
    yield "ddim_trailing", ddim, "discrete", 7, -1, lambda _, n: trailing_sigmas(n)
    yield "uni_pc", uni_pc, "discrete", 9, -1, lambda _, n: uni_pc_sigmas(n)
    yield "uni_pc", uni_pc, "discrete", 2, -1, lambda _, n: uni_pc_sigmas(n)
    yield "uni_pc", uni_pc, "karras", 6, -1, sigmas_of


OWN_ETA = {"euler_a": 1, "dpm++2s_a": 1, "dpm++2m_sde": 1, "dpm++sde": 1}


def run(name, fn, s, eta):
    x = START.astype(np.float64)
    if name not in UNIT:
        x = x * s[0]
    return fn(estimate, x, [float(v) for v in s], Noise(), OWN_ETA.get(name, 0) if eta < 0 else eta)


# --- the same through diffusers ---

def diffusers_run(cls, n, noise=False, unit=False, unit_start=False, eta=None, **kw):
    import importlib

    import diffusers
    import torch
    sched = getattr(diffusers, cls)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **kw)
    mod = importlib.import_module(type(sched).__module__)
    z = Noise()
    if noise:
        mod.randn_tensor = lambda shape, **_: torch.from_numpy(z()).reshape(shape)
    sched.set_timesteps(n)
    x = torch.from_numpy(START.astype(np.float64)).reshape(1, 1, 1, N)
    if not unit:
        x = x * float(sched.sigmas[0])
    if unit_start:
        x = x / float(sched.sigmas[0] ** 2 + 1) ** 0.5
    for k, t in enumerate(sched.timesteps):
        inp = sched.scale_model_input(x, t)
        s = t_to_sigma(float(t)) if unit else float(sched.sigmas[k])
        if cls == "KDPM2DiscreteScheduler" and k % 2 == 1:
            s = float(sched.sigmas_interpol[k])
        full = inp.numpy().reshape(N) * (s * s + 1) ** 0.5
        eps = torch.from_numpy((full - estimate(full, s)) / s).reshape(x.shape)
        x = sched.step(eps, t, x, **({} if eta is None else {"eta": eta})).prev_sample
    return x.numpy().reshape(N)


def compare(rows):
    checks = [
        ("euler", 6, -1, dict(cls="EulerDiscreteScheduler", timestep_spacing="linspace")),
        ("euler", 9, -1, dict(cls="EulerDiscreteScheduler", use_karras_sigmas=True)),
        ("euler_a", 6, -1, dict(cls="EulerAncestralDiscreteScheduler", timestep_spacing="linspace", noise=True)),
        ("heun", 5, -1, dict(cls="HeunDiscreteScheduler", use_karras_sigmas=True)),
        ("dpm2", 6, -1, dict(cls="KDPM2DiscreteScheduler", use_karras_sigmas=True)),
        ("dpm++2m", 8, -1, dict(cls="DPMSolverMultistepScheduler", use_karras_sigmas=True, unit_start=True,
                                final_sigmas_type="zero", euler_at_final=True)),
        ("dpm++2m_sde", 8, -1, dict(cls="DPMSolverMultistepScheduler", use_karras_sigmas=True, noise=True,
                                    unit_start=True, algorithm_type="sde-dpmsolver++",
                                    final_sigmas_type="zero", euler_at_final=True)),
        ("ddim", 7, -1, dict(cls="DDIMScheduler", unit=True, clip_sample=False, set_alpha_to_one=False, steps_offset=1)),
        ("ddim", 6, 0.8, dict(cls="DDIMScheduler", unit=True, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                              eta=0.8, noise=True)),
        ("uni_pc", 9, -1, dict(cls="UniPCMultistepScheduler", unit=True, solver_order=2, solver_type="bh2")),
        ("uni_pc", 2, -1, dict(cls="UniPCMultistepScheduler", unit=True, solver_order=2, solver_type="bh2")),
    ]
    for name, n, eta, kw in checks:
        mine = next(r for r in rows if r["sampler"] == name and len(r["sigmas"]) == n + 1 and r["eta"] == eta
                    and (r["schedule"] == "karras") == kw.get("use_karras_sigmas", False))
        other = diffusers_run(n=n, **kw)
        d = np.abs(other - mine["final"]).max() / np.abs(other).max()
        print(f"{name:12} {n} steps eta {eta}: {d:.2e} from diffusers")
        assert d < 1e-4


def main():
    rows = []
    for i, (name, fn, sched, n, eta, make) in enumerate(plan()):
        s = make(sched, n)
        rows.append({"sampler": name, "schedule": sched, "prediction": "v" if i % 3 == 2 else "eps", "eta": eta,
                     "sigmas": [float(v) for v in s], "final": [round(float(v), 10) for v in run(name, fn, s, eta)]})
    compare(rows)
    head = {"width": WIDTH, "means": MEANS.reshape(-1).tolist(), "start": [float(f"{v:.9g}") for v in START],
            "noise": [float(f"{v:.9g}") for v in NOISE.reshape(-1)]}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "samplers.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in [head] + rows) + "\n]\n")


if __name__ == "__main__":
    main()
