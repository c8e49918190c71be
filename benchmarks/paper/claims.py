"""How each of the paper's claims fell: the statistics and thresholds of the README, on the runs in results/.

A sample is one number for each seed that has one. Shapes: a alphas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import numpy as np

from benchmarks.paper.design import (
    ALPHAS,
    FRACTIONS,
    OF_NOISE,
    OF_SIZE,
    SEEN,
    SEEN_BY_STUDENT,
    WHOLE,
    Data,
    named,
    seen,
)
from toolkit.report.statistics import Difference, mean_of
from toolkit.report.tables import table

NO_WORSE = -0.3  # points
HOLDS, FAILS, OPEN = "holds", "fails", "not decided"

SAID = {
    "a1": "KD helps at every f below 1, by every method",
    "a2": "most where little is kept",
    "b1": "with KD, random is no worse than hard pruning, at every f",
    "b2": "and better where little is kept",
    "c": "a random half with KD is no worse than all the data without",
    "d": "the best alpha falls as f rises",
    "e": "where little is kept, a smaller teacher is no worse than a larger",
    "f": "a teacher that saw more makes a better student",
    "g": "KD offsets the label noise that hard pruning keeps",
}

Sample = dict[int, float]


class Runs:
    """The test accuracy of every run, in percent, by what was asked for."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self._found: dict[tuple[Any, ...], Sample] = {}
        for line in lines:
            cell = line["cell"]
            key = (line["study"].partition("-s")[0] if line["study"].startswith("seen-s") else line["study"],)
            key += tuple(cell[axis] for axis in ("method", "frac", "alpha", "teacher"))
            self._found.setdefault(key, {})[cell["seed"]] = line["result"]["top1"]

    def of(self, study: str, method: str, frac: float, alpha: float, teacher: str) -> Sample:
        return self._found.get((study, method, frac, alpha, teacher), {})


def minus(ours: Sample, theirs: Sample) -> Sample:
    return {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


class Judged(NamedTuple):
    """A claim of one data set in one setting: `cells` are its differences, by their names."""

    claim: str
    setting: str
    threshold: float
    cells: dict[str, Difference | None]
    verdict: str

    @property
    def below(self) -> bool:
        """Whether the claim is that differences lie below the threshold."""
        return self.claim == "d"

    @property
    def decided(self) -> int:
        """How many cells' intervals lie where the claim says."""
        return sum(cell.high < self.threshold if self.below else cell.low > self.threshold for cell in self.there)

    @property
    def against(self) -> int:
        """How many cells' intervals lie on the other side: one of many may by chance, and the claim not fail."""
        return sum(cell.low > self.threshold if self.below else cell.high < self.threshold for cell in self.there)

    @property
    def there(self) -> list[Difference]:
        return [cell for cell in self.cells.values() if cell is not None]

    @property
    def in_short(self) -> str:
        """The verdict, and of an open one of several cells how many say so alone, and how many the contrary."""
        if self.verdict != OPEN or len(self.cells) == 1:
            return self.verdict
        against = f", {self.against} against" if self.against else ""
        return f"{self.verdict}: {self.decided} of {len(self.cells)}{against}"


def judged(claim: str, setting: str, samples: Mapping[str, Sample], threshold: float = 0.0, sign: int = 1) -> Judged:
    """Whether every sample's mean lies above the threshold (`sign` −1: below)."""
    values = [[sign * value for value in sample.values()] for sample in samples.values()]
    there = [sample for sample in values if len(sample) > 1]
    bound = sign * threshold
    verdict = OPEN
    if len(there) == len(values) and all(mean_of(sample).low > bound for sample in there):
        verdict = HOLDS
    elif any(mean_of(sample, 1 - 0.05 / len(values)).high < bound for sample in there):
        verdict = FAILS
    cells = {name: mean_of(list(sample.values())) if len(sample) > 1 else None for name, sample in samples.items()}
    return Judged(claim, setting, threshold, cells, verdict)


@dataclass(frozen=True)
class Setting:
    """Where claims a to d are asked: the sweeps of random and of hard rows, the teacher, and the grid of alpha."""

    name: str
    random: str
    hard: str
    teacher: str
    alphas: tuple[float, ...]
    others: bool  # whether the sweep `methods` belongs to it

    @property
    def ways(self) -> dict[str, tuple[str, str]]:
        """(sweep, method) of each way to choose rows, by its name."""
        known = {"random": (self.random, "random"), "hardest, forgetting": (self.hard, "hardest")}
        if self.others:
            more = {"hardest, EL2N": "hardest", "easiest, EL2N": "easiest", "moderate": "moderate"}
            known |= {name: ("methods", method) for name, method in more.items()}
        return known


def settings(data: Data) -> list[Setting]:
    student, teacher, _ = map(named, data.teachers)
    return [
        Setting("larger teacher", "alpha", "forgetting", teacher, ALPHAS, True),
        Setting("self-distillation", "alpha-self", "forgetting-self", student, ALPHAS, False),
        Setting("fixed iterations", "iterations", "iterations-hard", teacher, (0.0, 0.5, 1.0), False),
    ]


def verdicts(data: Data, lines: Iterable[Mapping[str, Any]]) -> list[Judged]:
    """Of every claim in every setting; without their runs they are not decided."""
    runs = Runs(lines)
    found = [verdict for setting in settings(data) for verdict in _of_setting(runs, setting)]
    return sorted(found + _of_teachers(runs, data), key=lambda one: one.claim)


def _of_setting(runs: Runs, setting: Setting) -> list[Judged]:
    def taught(way: str, frac: float, alpha: float = 1.0) -> Sample:
        return runs.of(*setting.ways[way], frac, alpha, setting.teacher)

    def gain(way: str, frac: float) -> Sample:
        return minus(taught(way, frac), taught(way, frac, 0.0))

    few, many = FRACTIONS[0], FRACTIONS[-1]
    hard = [way for way in setting.ways if way.startswith("hardest")]
    beside = {(way, frac): minus(taught("random", frac), taught(way, frac)) for way in hard for frac in FRACTIONS}
    gains = {f"{way} {frac:g}": gain(way, frac) for way in setting.ways for frac in FRACTIONS}
    most = {way: minus(gain(way, few), gain(way, many)) for way in setting.ways}
    over = {f"over {way}, {frac:g}": sample for (way, frac), sample in beside.items()}
    least = {f"over {way}, {frac:g}": sample for (way, frac), sample in beside.items() if frac == few}
    half = {"random": minus(taught("random", many), taught("random", WHOLE, 0.0))}
    return [
        judged("a1", setting.name, gains),
        judged("a2", setting.name, most),
        judged("b1", setting.name, over, NO_WORSE),
        judged("b2", setting.name, least),
        judged("c", setting.name, half, NO_WORSE),
        judged("d", setting.name, {"slope": alpha_slopes(runs, setting)}, sign=-1),
    ]


def _of_teachers(runs: Runs, data: Data) -> list[Judged]:
    small, _, large = map(named, data.teachers)
    noisy = named(data.teachers[1], noisy=True)
    few = OF_SIZE[0]
    sizes = minus(runs.of("sizes", "random", few, 1.0, small), runs.of("sizes", "random", few, 1.0, large))

    def gain(study: str, method: str, frac: float) -> Sample:
        return minus(*(runs.of(study, method, frac, alpha, noisy) for alpha in (1.0, 0.0)))

    offset = {
        f"{frac:g}": minus(gain("noise-hard", "hardest", frac), gain("noise", "random", frac)) for frac in OF_NOISE
    }
    return [
        judged("e", "", {f"at {few:g}": sizes}, NO_WORSE),
        judged("f", "self-distillation", {"slope": seen_slopes(runs, data)}),
        judged("g", "larger teacher", offset),
    ]


def alpha_slopes(runs: Runs, setting: Setting, ties: Callable[[Iterable[float]], float] = min) -> Sample:
    """Of each seed that has all its runs: the slope of its best alpha against ln f."""
    fractions = (*FRACTIONS, WHOLE)
    grid = {
        frac: [runs.of(setting.random, "random", frac, alpha, setting.teacher) for alpha in setting.alphas]
        for frac in fractions
    }
    seeds = set.intersection(*(set(sample) for samples in grid.values() for sample in samples))
    return {
        seed: slope(
            [log(frac) for frac in fractions],
            [best_alpha(setting.alphas, [sample[seed] for sample in grid[frac]], ties) for frac in fractions],
        )
        for seed in sorted(seeds)
    }


def seen_slopes(runs: Runs, data: Data) -> Sample:
    """Of each seed that has all its runs: the slope of its student's accuracy against ln f_t."""
    found = {}
    for seed in range(data.seeds):
        top1 = [runs.of("seen", "random", SEEN_BY_STUDENT, 1.0, seen(frac, seed)).get(seed) for frac in SEEN]
        if None not in top1:
            found[seed] = slope([log(frac) for frac in SEEN], top1)  # type: ignore[arg-type]
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line of least squares."""
    return float(np.polyfit(x, y, 1)[0])


def best_alpha(
    alphas: Sequence[float], top1_a: Sequence[float], ties: Callable[[Iterable[float]], float] = min
) -> float:
    """Where the parabola of least squares is highest, within the grid; the best of the grid where it has no top, which
    of equals `ties` says."""
    square, linear, _ = np.polyfit(alphas, top1_a, 2)
    if square >= 0:
        return ties(alpha for alpha, top1 in zip(alphas, top1_a, strict=True) if top1 == max(top1_a))
    return float(np.clip(-linear / (2 * square), min(alphas), max(alphas)))


def side_by_side(found: Mapping[str, Sequence[Judged]]) -> str:
    """A line for each claim in each setting, with its verdict on each data set."""
    places = dict.fromkeys((one.claim, one.setting) for of_one in found.values() for one in of_one)
    verdict = {(key, one.claim, one.setting): one.in_short for key, of_one in found.items() for one in of_one}
    rows = [
        [claim, SAID[claim], setting, *(verdict[key, claim, setting] for key in found)] for claim, setting in places
    ]
    header = ["", "claim", "setting", *found]
    return table(header, rows, header)


def in_words(found: Sequence[Judged]) -> str:
    """A line for each claim and setting: of several cells the one that decides least well, the lowest, how many have
    runs, and how many say alone what the claim says, and the contrary."""
    rows = []
    for one in found:
        there = {name: cell for name, cell in one.cells.items() if cell is not None}
        shown, word = "no runs", "<" if one.below else ">"
        if there:
            name, cell = min(there.items(), key=lambda item: -item[1].high if one.below else item[1].low)
            shown = f"{cell.in_words} ({name})"
        cells = f"{len(there)} of {len(one.cells)}"
        limit = f"{word} {one.threshold:g}"
        rows.append([one.claim, one.setting, limit, shown, cells, str(one.decided), str(one.against), one.verdict])
    header = ["claim", "setting", "threshold", "weakest cell [95 %]", "cells", "for", "against", "verdict"]
    return table(header, rows, ("setting", "verdict"))


def cells_in_words(found: Sequence[Judged]) -> str:
    """A line for each cell that has runs."""
    rows = [
        [one.claim, one.setting, name, cell.in_words, str(cell.n)]
        for one in found
        for name, cell in one.cells.items()
        if cell is not None
    ]
    return table(["claim", "setting", "cell", "difference [95 %]", "seeds"], rows, ("setting", "cell"))


def ties_in_words(data: Data, lines: Iterable[Mapping[str, Any]]) -> str:
    """Claim d where alphas that are equally good count as the smallest of them, as its verdict has it, and as the
    largest: accuracies on few test images are often equal."""
    runs, rows = Runs(lines), []
    for setting in settings(data):
        slopes = [list(alpha_slopes(runs, setting, ties).values()) for ties in (min, max)]
        if all(len(sample) > 1 for sample in slopes):
            rows.append([setting.name, *(mean_of(sample).in_words for sample in slopes)])
    return table(["claim d: slope [95 %]", "the smallest", "the largest"], rows)
