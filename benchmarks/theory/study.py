"""What the model says: its numbers, and which of the paper's claims hold in it: all means over draws of X."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.theory.model import Setting, at, best_alpha, curves, draw, error, simulate

BASE = Setting()
ALPHAS = [round(0.05 * step, 2) for step in range(25)]
FRACTIONS = [0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
TAUGHT = [0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0]
LAMBDAS = [0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
GAMMAS = [0.0, 0.1, 0.3, 1.0, 3.0]
GRID = [(lam, gamma) for lam in (1.0, 10.0, 100.0, 1000.0) for gamma in (0.3, 1.0, 3.0)]
CELL_FRACTIONS = [0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]

# Where α* could fall with f. The first three are the paper's model, the others our extensions of it.
REGIMES = {
    "λ = 10": BASE,
    "λ = 100 = dγ², the best λ": Setting(lam=100),
    "λ = 400 = dγ², γ = 2": Setting(lam=400, gamma=2),
    "the teacher's λ = 100": Setting(lam_t=100),
    "the teacher's λ = 1000": Setting(lam_t=1000),
    "noisier labels for the teacher": Setting(noise_t=2),
    "the teacher sees 80 of 100 features": Setting(sees_t=80),
    "the student sees 80 of 100 features": Setting(sees=80),
    "a teacher of other samples": Setting(apart=True),
}


def point(s: Setting, draws: int) -> dict[str, Any]:
    """(error, bias², variance) at α = 0, 1 and α*, the gain of α = 1 with its standard error over X, and α*."""
    c_r23 = curves(s, draws)
    gain_r = error(c_r23, 0) - error(c_r23, 1)
    star, c_23 = best_alpha(c_r23), c_r23.mean(axis=0)
    parts = {name: [float(error(c_23, a)), *map(float, at(c_23, a))] for name, a in (("0", 0), ("1", 1), ("*", star))}
    return {"at": parts, "gain": float(gain_r.mean()), "gain_se": standard_error(gain_r), "best_alpha": star}


def standard_error(values_r: np.ndarray) -> float:
    return float(values_r.std(ddof=1) / len(values_r) ** 0.5)


def agreement(s: Setting, draws: int, trials: int, alphas: list[float], seed: int) -> list[dict[str, Any]]:
    """Per α: the closed form, the simulation with its standard error over X, both of the same X, and how many standard
    errors of their difference they are apart. Raises ValueError where nothing simulates the setting."""
    if s.apart or s.sees or s.sees_t:
        raise ValueError(f"only the paper's model is simulated, got {s}")
    rng, noise = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    c_r23 = curves(s, draws, seed)
    found_rar = np.stack([simulate(*draw(s, rng), s, alphas, trials, noise).mean(axis=1) for _ in range(draws)])
    rows = []
    for alpha, found_r in zip(alphas, found_rar.T, strict=True):
        closed_r = error(c_r23, alpha)
        z = float((found_r - closed_r).mean() / standard_error(found_r - closed_r))
        rows.append({"f": s.f, "f_t": s.f_t, "lam": s.lam, "lam_t": s.lam_t, "alpha": alpha, "z": z,
                     "closed_form": float(closed_r.mean()), "simulated": float(found_r.mean()),
                     "standard_error": standard_error(found_r)})  # fmt: skip
    return rows


def cell(lam: float, gamma: float, draws: int) -> dict[str, Any]:
    """What the claims look at, of one λ and γ: against f with f_t = 1 and with f_t = f, and at f = 0.1 against f_t."""
    s = replace(BASE, lam=lam, gamma=gamma)
    return {
        "f": CELL_FRACTIONS,
        "full": [point(replace(s, f=f), draws) for f in CELL_FRACTIONS],
        "self": [point(replace(s, f=f, f_t=f), draws) for f in CELL_FRACTIONS],
        "f_t": [point(replace(s, f_t=f_t), draws)["at"]["1"] for f_t in TAUGHT],
    }


def numbers(draws: int, trials: int) -> dict[str, Any]:
    """All that is plotted and tabled; `draws` of X for each setting, `trials` of the noise where it is simulated."""
    mc = [
        Setting(),
        Setting(f_t=0.5),
        Setting(f_t=0.1),
        Setting(f=0.5),
        Setting(lam=100),
        Setting(lam_t=300, noise_t=1),
    ]
    curve = {f"{f:g}": curves(Setting(f=f), draws).mean(axis=0) for f in (0.05, 0.1, 0.2, 0.5, 1.0)}
    return {
        "base": {"d": BASE.d, "N": BASE.N, "lam": BASE.lam, "gamma": BASE.gamma, "draws": draws, "trials": trials},
        "agreement": [row for seed, s in enumerate(mc, 1)
                      for row in agreement(s, draws, trials, [0.0, 0.5, 1.0], seed)],
        "alpha": {"alphas": ALPHAS, "error": {f: [float(error(c, a)) for a in ALPHAS] for f, c in curve.items()}},
        "f": {"f": FRACTIONS, "full": [point(Setting(f=f), draws) for f in FRACTIONS],
              "self": [point(Setting(f=f, f_t=f), draws) for f in FRACTIONS]},
        "f_t": {f"{f:g}": [[f_t, *point(Setting(f=f, f_t=f_t), draws)["at"]["1"]]
                           for f_t in sorted({f, *TAUGHT}) if f_t >= f]
                for f in (0.05, 0.1, 0.3)},
        "lam": {"lam": LAMBDAS, "full": [point(Setting(lam=lam), draws) for lam in LAMBDAS],
                "self": [point(Setting(lam=lam, f_t=0.1), draws) for lam in LAMBDAS]},
        "gamma": {"gamma": GAMMAS, "full": [point(Setting(gamma=gamma), draws) for gamma in GAMMAS]},
        "regimes": {name: [point(replace(s, f=f), draws) for f in CELL_FRACTIONS] for name, s in REGIMES.items()},
        "cells": [{"lam": lam, "gamma": gamma, **cell(lam, gamma, max(2, draws // 2))} for lam, gamma in GRID],
    }  # fmt: skip


def series(points: list[dict[str, Any]], alpha: str, part: int = 0) -> list[float]:
    """Error (part 0), bias² (1) or variance (2) of points, at α = "0", "1" or "*"."""
    return [one["at"][alpha][part] for one in points]


def _kd_lowers(points: list[dict[str, Any]], part: int) -> list[bool]:
    return [kd < none for none, kd in zip(series(points, "0", part), series(points, "1", part), strict=True)]


def _clipped(c: dict[str, Any], f: float) -> float:
    return float(np.clip(c["full"][c["f"].index(f)]["best_alpha"], 0, 1))


# What is claimed, of one cell. `[:-1]` leaves out f = 1, where nothing is pruned.
CLAIMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "KD (α = 1) lowers the error at every f < 1": lambda c: min(p["gain"] for p in c["full"][:-1]) > 0,
    "KD gains most at the smallest f": lambda c: c["full"][0]["gain"] == max(p["gain"] for p in c["full"]) > 0,
    "KD's gain falls as f rises, from fN = d on": lambda c: max(np.diff([p["gain"] for p in c["full"][1:]])) < 0,
    "half of the data with KD is no worse than all without": lambda c: (
        c["full"][c["f"].index(0.5)]["at"]["1"][0] <= c["full"][-1]["at"]["0"][0]
    ),
    "the error falls as the teacher sees more (f_t)": lambda c: max(np.diff([p[0] for p in c["f_t"]])) < 0,
    "KD lowers the variance at every f": lambda c: all(_kd_lowers(c["full"], 2)),
    "KD lowers the bias at any f": lambda c: any(_kd_lowers(c["full"], 1)),
    "the bias falls with f_t, from f_t = f on": lambda c: max(np.diff([p[1] for p in c["f_t"]])) < 0,
    "the best α of [0, 1] falls by 0.1 or more from f = 0.05 to 0.9": lambda c: (
        _clipped(c, 0.05) - _clipped(c, 0.9) >= 0.1
    ),
    "α* is within 0.1 of 1 at every f < 1": lambda c: max(abs(p["best_alpha"] - 1) for p in c["full"][:-1]) <= 0.1,
    "some α in (0, 1] helps with a teacher of the same part (f_t = f)": lambda c: (
        min(p["best_alpha"] for p in c["self"]) > 0
    ),
}  # fmt: skip


def verdict(here: bool, elsewhere: list[bool]) -> str:
    """Of λ = 10, γ = 1, and of all cells of the grid."""
    if all(elsewhere) or not any(elsewhere):
        return "holds" if here else "does not hold"
    return "holds here, not everywhere" if here else "not here, but elsewhere"


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Each claim's verdict, and the (λ, γ) it holds at."""
    judged = []
    for name, holds in CLAIMS.items():
        at_cells = {(c["lam"], c["gamma"]): bool(holds(c)) for c in found["cells"]}
        here = at_cells[BASE.lam, BASE.gamma]
        judged.append({"claim": name, "verdict": verdict(here, list(at_cells.values())),
                       "holds_at": [key for key, true in at_cells.items() if true],
                       "fails_at": [key for key, true in at_cells.items() if not true]})  # fmt: skip
    return judged
