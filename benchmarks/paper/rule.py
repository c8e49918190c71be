"""The rule of `--alpha auto`, 1 − k·f: its k fitted on one data set's runs, and what it loses there and on the other.

kdtool's own k (toolkit/distill/alpha.py) is the one fitted on all runs; a test compares them.

Regret is the accuracy of the best alpha of the grid less that of the rule's, in points, both as means over seeds;
between two alphas of the grid accuracy is taken to be a straight line. The best of several noisy means is a little too
good, so regrets are a little too large. Shapes: a alphas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.paper.claims import Runs, Setting, settings
from benchmarks.paper.design import FRACTIONS, WHOLE, Data
from toolkit.report.tables import table

SLOPES = [number / 20 for number in range(21)]  # k
SETTINGS = ("larger teacher", "self-distillation")  # those with all alphas

Curves = dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]


def curves(runs: Runs, data: Data) -> Curves:
    """Of each setting and fraction that has all its runs: alphas (a,) and mean accuracies (a,)."""
    found = {}
    for setting in settings(data):
        for frac in (*FRACTIONS, WHOLE) if setting.name in SETTINGS else ():
            samples = [_sample(runs, setting, frac, alpha) for alpha in setting.alphas]
            if all(samples):
                found[setting.name, frac] = (np.array(setting.alphas), np.array([mean(sample) for sample in samples]))
    return found


def _sample(runs: Runs, setting: Setting, frac: float, alpha: float) -> list[float]:
    return list(runs.of(setting.random, "random", frac, alpha, setting.teacher).values())


def regret(curve: tuple[np.ndarray, np.ndarray], alpha: float) -> float:
    alpha_a, top1_a = curve
    return float(top1_a.max() - np.interp(alpha, alpha_a, top1_a))


def fitted(found: Curves) -> float:
    """The k of the least mean regret; the smallest of several."""
    return min(SLOPES, key=lambda k: mean(regret(curve, 1 - k * frac) for (_, frac), curve in found.items()))


def rules(found: Mapping[str, Curves]) -> dict[str, Callable[[float], float]]:
    """The alphas to compare, as functions of f: the rule as fitted on each data set and on all, and constants."""
    of_data = {key: fitted(of_one) for key, of_one in found.items()}
    if len(found) > 1:
        of_data["all"] = fitted(together(found))
    fits = {f"1 − {k:g}·f, fitted on {key}": (lambda frac, k=k: 1 - k * frac) for key, k in of_data.items()}
    return {**fits, "always 1": lambda frac: 1.0, "always 0.5": lambda frac: 0.5}


def together(found: Mapping[str, Curves]) -> Curves:
    """Those of all data sets, each curve with as much to say as any other."""
    return {(f"{key}, {name}", frac): one for key, of in found.items() for (name, frac), one in of.items()}


def curves_of(sets: Mapping[str, tuple[Data, Iterable[Mapping[str, Any]]]]) -> dict[str, Curves]:
    """Of each data set that has any."""
    found = {key: curves(Runs(lines), data) for key, (data, lines) in sets.items()}
    return {key: of_one for key, of_one in found.items() if of_one}


def in_words(sets: Mapping[str, tuple[Data, Iterable[Mapping[str, Any]]]]) -> str:
    """Regrets of each rule on each data set, setting and fraction, and their means over each data set."""
    found = curves_of(sets)
    compared = rules(found)
    header = ["data, setting, f", "best alpha", *compared, "no teacher"]
    rows = []
    for key, of_one in found.items():
        lost_of = {}
        for (setting, frac), (alpha_a, top1_a) in of_one.items():
            lost = [regret((alpha_a, top1_a), alpha) for alpha in (*(rule(frac) for rule in compared.values()), 0.0)]
            rows.append([f"{key}, {setting}, {frac:g}", f"{alpha_a[top1_a.argmax()]:g}", *_points(lost)])
            lost_of[setting, frac] = lost
        pruned = [lost for (_, frac), lost in lost_of.items() if frac < WHOLE]
        for name, some in (("mean", list(lost_of.values())), (f"mean, f < {WHOLE:g}", pruned)):
            if some:
                rows.append([f"{key}, {name}", "", *_points(map(mean, zip(*some, strict=True)))])
    return table(header, rows)


def _points(lost: Iterable[float]) -> list[str]:
    return [f"{one:.2f}" for one in lost]
