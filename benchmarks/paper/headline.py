"""The README's table: accuracy by fraction, with and without the teacher, of random and of hard rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.paper.claims import Runs, minus, settings
from benchmarks.paper.design import FRACTIONS, WHOLE, Data
from toolkit.report.statistics import mean_and_sigma, mean_of
from toolkit.report.tables import table

WAYS = ("random", "hardest, forgetting")


def in_words(data: Data, lines: Iterable[Mapping[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, in percent, and the paired gain of KD by random rows, with its interval."""
    runs, (setting, *_) = Runs(lines), settings(data)
    rows = []
    for frac in (*FRACTIONS, WHOLE):
        found = [runs.of(*setting.ways[way], frac, alpha, setting.teacher) for way in WAYS for alpha in (0.0, 1.0)]
        gain = minus(found[1], found[0])
        shown = [mean_and_sigma(list(sample.values())) if sample else "" for sample in found]
        gained = mean_of(list(gain.values())) if len(gain) > 1 else None
        interval = f"{gained.mean:+.2f} [{gained.low:+.2f}, {gained.high:+.2f}]" if gained else ""
        rows.append([f"{frac:g}", shown[0], shown[1], interval, *shown[2:]])
    header = ["f", "random", "random, KD", "gain [95 %]", "hardest", "hardest, KD"]
    return table(header, rows)
