"""Tables of accuracy by fraction, with and without the teacher: the README's, of random and of hard rows, and the
guide's, of short and of long training. Mean ± standard deviation over seeds, in percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.paper.claims import Runs, minus, settings
from benchmarks.paper.design import FRACTIONS, NOISE, OF_NOISE, WHOLE, Data, named
from toolkit.report.statistics import mean_and_sigma, mean_of
from toolkit.report.tables import table

WAYS = ("random", "hardest, forgetting")
NOISY = (("noise", "random"), ("noise-hard", "hardest"))


def in_words(data: Data, lines: Iterable[Mapping[str, Any]]) -> str:
    """Random and hard rows, with the paired gain of KD by random rows and its interval; then random rows for a number
    of steps that is the same whatever the fraction."""
    runs, (setting, _, by_steps) = Runs(lines), settings(data)
    rows = []
    for frac in (*FRACTIONS, WHOLE):
        found = [runs.of(*setting.ways[way], frac, alpha, setting.teacher) for way in WAYS for alpha in (0.0, 1.0)]
        gain = minus(found[1], found[0])
        shown = list(map(_cell, found))
        interval = mean_of(list(gain.values())).in_words if len(gain) > 1 else ""
        steps = [runs.of(by_steps.random, "random", frac, alpha, by_steps.teacher) for alpha in (0.0, 1.0)]
        rows.append([f"{frac:g}", shown[0], shown[1], interval, *shown[2:], *map(_cell, steps)])
    same = f"{data.iterations} steps"
    header = ["f", "random", "random, KD", "gain [95 %]", "hardest", "hardest, KD", f"random, {same}", f"{same}, KD"]
    return table(header, rows)


def noise_in_words(data: Data, lines: Iterable[Mapping[str, Any]]) -> str:
    """Random and hard rows of data with wrong labels."""
    runs, teacher = Runs(lines), named(data.teachers[1], noisy=True)
    rows = [
        [f"{frac:g}", *map(_cell, (runs.of(*way, frac, alpha, teacher) for way in NOISY for alpha in (0.0, 1.0)))]
        for frac in OF_NOISE
    ]
    header = [f"f, of labels of which {NOISE:g} are wrong", "random", "random, KD", "hardest", "hardest, KD"]
    return table(header, rows)


def lengths_in_words(sets: Mapping[str, tuple[Data, Iterable[Mapping[str, Any]]]]) -> str:
    """Random rows for so many epochs, and for so many steps whatever the fraction."""
    rows = []
    for key, (data, lines) in sets.items():
        runs, (by_epochs, _, by_steps) = Runs(lines), settings(data)
        for frac in (*FRACTIONS, WHOLE):
            found = [
                runs.of(setting.random, "random", frac, alpha, setting.teacher)
                for setting in (by_epochs, by_steps)
                for alpha in (0.0, 1.0)
            ]
            if all(found):
                rows.append([f"{key}, {frac:g}", *map(_cell, found)])
    return table(["data, f", "fixed epochs", "with KD", "fixed steps", "with KD"], rows)


def _cell(sample: Mapping[int, float]) -> str:
    return mean_and_sigma(list(sample.values())) if sample else ""
