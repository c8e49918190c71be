"""The plots of a report as data: panels of lines, each through the means of runs that differ by their seed alone.

A plot is made only where its x axis has something to tell; else a sentence says why it is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.report.panels import percent
from toolkit.report.runs import Row, averages, groups, in_order

SIGMA = "Bars: ± 1 σ over seeds"
MOST_PANELS = 6  # of a plot

Hue = tuple[str, Any]  # what a line's colour stands for: ("way", "random"), ("frac", 0.1) or ("asked", 1.0)


@dataclass(frozen=True)
class Point:
    """A mean at `x`, in the units of its axes, with the ends of its bar (None: no bar) and the runs behind it.
    `name` is what a point that stands alone is called."""

    x: float
    y: float
    low: float | None
    high: float | None
    n: int
    name: str = ""


@dataclass(frozen=True)
class Line:
    """Points from left to right. `plain` of runs without KD: dashed, with hollow markers. A `level` has no x of its own
    and reaches from side to side. `stairs` goes up by steps. `loose` points are not joined."""

    name: str
    hue: Hue
    points: tuple[Point, ...]
    plain: bool = False
    level: bool = False
    stairs: bool = False
    loose: bool = False


@dataclass(frozen=True)
class Axis:
    """`ticks` name the only places that mean something, where there are few; `log` where they are ratios; `ends` are
    the smallest and largest value that can be; `zero` where 0 is what to compare with."""

    label: str
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False
    ends: tuple[float, float] | None = None
    zero: bool = False


@dataclass(frozen=True)
class Panel:
    """One picture: its lines, its axes, what its bars are, and what is held fixed, in words."""

    title: str
    held: tuple[str, ...]
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    bars: str = ""

    @property
    def weight(self) -> int:
        return sum(point.n for line in self.lines for point in line.points)


@dataclass(frozen=True)
class Plot:
    """A section of the report: pictures, or why there is none. `left` panels with fewer runs are in the table alone."""

    name: str
    title: str
    read: str
    panels: tuple[Panel, ...] = ()
    why_not: str = ""
    left: tuple[Panel, ...] = ()


TOP1 = Axis("test accuracy, %", ends=(0, 100))


def plot(name: str, title: str, read: str, panels: Sequence[Panel], why_not: str) -> Plot:
    """The plot with the panels of most runs, in the order given; without any, `why_not`."""
    if not panels:
        return Plot(name, title, read, why_not=why_not)
    largest = sorted(range(len(panels)), key=lambda at: -panels[at].weight)[:MOST_PANELS]
    left = tuple(panel for at, panel in enumerate(panels) if at not in largest)
    return Plot(name, title, read, tuple(panels[at] for at in sorted(largest)), left=left)


def short_number(value: float) -> str:
    """Three digits and a unit: 1.2 k, 45 M."""
    for unit, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def values_of(rows: Sequence[Row], column: str) -> list[Any]:
    """In order, each once."""
    return list(dict.fromkeys(row[column] for row in in_order(rows, column) if row.get(column) is not None))


def ratio_axis(label: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """Ticks at the values themselves, as far as there is room; logarithmic where they span a factor of six."""
    ordered = sorted(set(values))
    log = bool(ordered) and ordered[0] > 0 and ordered[-1] / ordered[0] >= 6
    place = math.log if log else float
    room = (place(ordered[-1]) - place(ordered[0])) / 9 if len(ordered) > 1 else 0
    ticks: list[tuple[float, str]] = []
    for value in ordered:
        if not ticks or place(value) - place(ticks[-1][0]) >= room:
            ticks.append((value, text(value)))
    return Axis(label, tuple(ticks), log)


def fractions(lines: Sequence[Line]) -> Axis:
    return ratio_axis("training rows kept, f", [point.x for line in lines for point in line.points], percent)


def means(rows: Sequence[Row], x: str) -> tuple[Point, ...]:
    """The mean top1 at each x, and ± σ."""
    found = []
    for one in in_order(averages([row for row in rows if row.get(x) is not None], [x]), x):
        mean, sd = one["top1"], one["top1_sd"]
        low, high = (None, None) if sd is None else (mean - sd, mean + sd)
        found.append(Point(one[x], mean, low, high, one["n"]))
    return tuple(found)


def lines_of(rows: Sequence[Row], x: str, of: str, name: Callable[[Any], str], plain: bool = False) -> list[Line]:
    """A line for each value of the column `of`."""
    members = groups(ordered([row for row in rows if row.get(of) is not None], of), [of])
    return [Line(name(value), (of, value), means(part, x), plain) for (value,), part in members.items()]


def ordered(rows: Sequence[Row], column: str) -> list[Row]:
    """By the column; of ways to choose rows random comes first, beside which the others are judged."""
    return sorted(in_order(rows, column), key=lambda row: column == "way" and row["way"] != "random")


def levels(rows: Sequence[Row]) -> list[Line]:
    """The means without KD, a level for each fraction."""
    made = lines_of([{**row, "_": 0.0} for row in rows], "_", "frac", lambda one: f"{percent(one)}, no KD", plain=True)
    return [Line(line.name, line.hue, line.points, plain=True, level=True) for line in made]


def widest(lines: Sequence[Line]) -> int:
    return max((len(line.points) for line in lines if not line.level), default=0)


def table_of(panels: Sequence[Panel]) -> tuple[list[str], list[list[str]]]:
    """What the pictures show, point by point: the header, and a line for each."""
    header = ["panel", "held fixed", "line", "x", "y", "low", "high", "n", "point"]
    cells = []
    for number, panel in enumerate(panels, start=1):
        for line, point in _points(panel):
            x = "" if line.level else f"{point.x:.6g}"
            bar = ["" if end is None else f"{end:.4f}" for end in (point.low, point.high)]
            place = [str(number), ", ".join(panel.held), line.name]
            cells.append([*place, x, f"{point.y:.4f}", *bar, str(point.n), point.name])
    return header, cells


def _points(panel: Panel) -> Iterator[tuple[Line, Point]]:
    for line in panel.lines:
        yield from ((line, point) for point in line.points)
