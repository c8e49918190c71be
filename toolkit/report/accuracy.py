"""Plots of accuracy: against the fraction kept, alpha, the teacher's size and cached views; and of what KD adds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from toolkit.core.errors import UsageError
from toolkit.report.panels import HELD, Group, groups_of, percent
from toolkit.report.plots import (
    SIGMA,
    TOP1,
    Axis,
    Line,
    Panel,
    Plot,
    Point,
    fractions,
    levels,
    lines_of,
    ordered,
    plot,
    ratio_axis,
    short_number,
    values_of,
    widest,
)
from toolkit.report.runs import Condition, Row, averages, compared, groups, in_order
from toolkit.report.statistics import paired_difference

INTERVAL = "Bars: 95 % interval of the paired difference"
RANGE = "Bars: every α that is not clearly worse (the 95 % interval of the paired difference holds 0)"
NO_KD = Condition.parse("alpha=0", "--against")


def accuracy_plots(rows: Sequence[Row], differing: Sequence[str]) -> list[Plot]:
    """Every plot of accuracies, of `panels.prepared` rows. `differing` are the settings that are not the same in all
    of them. A row may tell its teacher's size as `teacher_size`, in stored numbers."""
    return [made(rows, differing) for made in (_by_fraction, _gain, _by_alpha, _best_alpha, _by_teacher, _by_views)]


def _by_fraction(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "way")):
        lines = [
            *lines_of(group.taught, "frac", "way", lambda way: f"{way}, with KD"),
            *lines_of(group.plain, "frac", "way", lambda way: f"{way}, no KD", plain=True),
        ]
        taught = {line.hue for line in lines if not line.plain}
        # a point alone says something beside the same way with KD
        lines = [line for line in lines if len(line.points) > 1 or not taught or line.hue in taught]
        if widest(lines) > 1:
            held = tuple(group.in_words(differing))
            title = "Accuracy against the fraction kept"
            panels.append(Panel(title, held, fractions(lines), TOP1, tuple(lines), SIGMA))
    return plot(
        "accuracy-fraction",
        "Accuracy against the fraction kept, with and without KD",
        "Solid: with KD; dashed and hollow: without. One colour for each way of choosing rows.",
        panels,
        "needs two fractions or more (--frac) of runs that agree in all else",
    )


def _gain(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "way")):
        try:
            found = compared(group.taught, ["way", "frac"], [NO_KD], [*HELD, "seed", "rows_fingerprint"], group.plain)
        except UsageError:  # several runs without KD, which differ: there is no one difference to show
            continue
        lines = []
        for (way,), members in groups(ordered(found, "way"), ["way"]).items():
            points = [
                Point(one["frac"], one["difference"], one["low"], one["high"], one["pairs"])
                for one in in_order(members, "frac")
                if one["pairs"]
            ]
            lines += [Line(way, ("way", way), tuple(points))] if points else []
        if widest(lines) > 1:
            y = Axis("KD minus no KD, points of accuracy", zero=True)
            title, held = "What KD adds, by the fraction kept", tuple(group.in_words(differing))
            panels.append(Panel(title, held, fractions(lines), y, tuple(lines), INTERVAL))
    return plot(
        "gain-fraction",
        "What KD adds, by the fraction kept",
        "The mean difference between runs that share subset, seed and all settings but KD. n counts pairs.",
        panels,
        "needs pairs of runs with and without KD (--alpha 0 and another, same seeds) at two fractions or more",
    )


def _numeric(group: Group) -> list[Row]:
    """Runs by the alpha they were asked for as a number, 0 without KD."""
    return [{**row, "x": row["alpha"]} for row in group.rows if not isinstance(row["asked"], str)]


def _by_alpha(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "asked")):
        numeric = _numeric(group)
        lines = [line for line in lines_of(numeric, "x", "frac", lambda one: f"{percent(one)} kept") if line.points]
        if widest(lines) > 2:
            alphas = values_of(numeric, "x")
            x = Axis("α, the teacher's weight (0: no KD)", ratio_axis("", alphas, lambda one: f"{one:g}").ticks)
            held = tuple(group.in_words(differing))
            panels.append(Panel("Accuracy against α", held, x, TOP1, tuple(lines), SIGMA))
    return plot(
        "accuracy-alpha",
        "Accuracy against α, by the fraction kept",
        "α = 0 learns from labels alone, α = 1 from the teacher alone. Runs with --alpha auto or search are left out.",
        panels,
        "needs three alphas or more (--alpha), 0 among them or not, of runs that agree in all else",
    )


def _best_alpha(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "asked", "way")):
        alphas, places = same_alphas([row for row in _numeric(group) if row["frac"] is not None])
        found: dict[str, list[Point]] = {}
        for (way, frac), members in places.items():
            point = best_alpha(frac, members)
            found.setdefault(way, []).extend([] if point is None else [point])
        lines = [Line(way, ("way", way), tuple(points)) for way, points in found.items() if points]
        if widest(lines) > 1:
            y = Axis("α of the highest mean accuracy", ends=(0, 1))
            left = len(places) - sum(len(line.points) for line in lines)
            told = [f"of α {', '.join(f'{one:g}' for one in alphas)}"]
            told += [f"{left} left out without a seed or three α in common"] if left else []
            held = (*group.in_words(differing), *told)
            panels.append(Panel("The best α, by the fraction kept", held, fractions(lines), y, tuple(lines), RANGE))
    return plot(
        "best-alpha",
        "The best α, by the fraction kept",
        "Of the alphas that every fraction of a picture was run with, at the seeds that all of them have. "
        "It is chosen on the test split, so its own accuracy is a little flattered.",
        panels,
        "needs three alphas or more at two fractions or more, of runs that agree in all else",
    )


def same_alphas(rows: Sequence[Row]) -> tuple[list[float], dict[tuple[str, float], list[Row]]]:
    """The alphas, as `x`, that every way and fraction of three or more has, and each one's rows of just these alphas,
    at the seeds that all of them have: what a best alpha is of must be the same everywhere."""
    places = groups(ordered(in_order(rows, "frac"), "way"), ["way", "frac"])
    grids = [grid for members in places.values() if len(grid := {row["x"] for row in members}) >= 3]
    alphas = set.intersection(*grids) if grids else set()
    found: dict[tuple[str, float], list[Row]] = {}
    for (way, frac), members in places.items():
        seeds = [{row["seed"] for row in members if row["x"] == alpha} for alpha in alphas]
        shared = set.intersection(*seeds) if seeds else set()
        found[way, frac] = [row for row in members if row["x"] in alphas and row["seed"] in shared]
    return sorted(alphas), found


def best_alpha(frac: float, rows: Sequence[Row]) -> Point | None:
    """The alpha of the highest mean top1 (of equals the smallest), and the range of those whose difference from it,
    paired by seed, has a 95 % interval that holds 0; None for fewer than three alphas. Rows tell alpha as `x`."""
    found = in_order(averages(rows, ["x"]), "x")
    if len(found) < 3:
        return None
    best = max(found, key=lambda one: one["top1"])["x"]
    top1 = {(row["x"], row["seed"]): row["top1"] for row in rows}
    near = [one["x"] for one in found if one["x"] == best or _may_equal(top1, one["x"], best)]
    paired = len({seed for _, seed in top1}) > 1
    n = next(one["n"] for one in found if one["x"] == best)
    return Point(frac, best, min(near) if paired else None, max(near) if paired else None, n)


def _may_equal(top1: dict[tuple[Any, Any], float], one: float, best: float) -> bool:
    seeds = [seed for alpha, seed in top1 if alpha == one and (best, seed) in top1]
    if len(seeds) < 2:
        return True
    return paired_difference([top1[one, seed] for seed in seeds], [top1[best, seed] for seed in seeds]).high >= 0


def _by_teacher(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "teacher_is")):
        named = {row["teacher_is"]: row for row in group.taught}
        if len(named) < 2:
            continue
        x, place = _sizes(named)
        taught = [{**row, "x": place[row["teacher_is"]]} for row in group.taught]
        lines = lines_of(taught, "x", "frac", lambda one: f"{percent(one)} kept")
        if widest(lines) > 1:
            held = tuple(group.in_words(differing))
            lines += levels(group.plain)
            panels.append(Panel("Accuracy against the teacher's size", held, x, TOP1, tuple(lines), SIGMA))
    return plot(
        "accuracy-teacher",
        "Accuracy against the teacher's size, by the fraction kept",
        "The dashed levels are without KD.",
        panels,
        f"needs two teachers or more (--teacher) of runs that agree in all else{_apart(rows)}",
    )


def _apart(rows: Sequence[Row]) -> str:
    """What the runs with KD of two teachers that are most alike differ in."""
    columns = [column for column in HELD if column not in ("frac", "teacher_is")]
    alike = {tuple(str(row.get(one)) for one in ("teacher_is", *columns)): None for row in rows if row["taught"]}
    pairs = [(one, other) for one, other in combinations(alike, 2) if one[0] != other[0]]
    found = [
        [column for column, a, b in zip(columns, one[1:], other[1:], strict=True) if a != b] for one, other in pairs
    ]
    return f"; these differ in {', '.join(closest)}" if (closest := min(found, key=len, default=[])) else ""


def _sizes(named: dict[str, Row]) -> tuple[Axis, dict[str, float]]:
    """Each teacher's place on the axis: its size where every one tells its own, else in the order of what is known."""
    sizes = {name: row.get("teacher_size") for name, row in named.items()}
    known = [size for size in sizes.values() if size]
    if len(known) == len(set(known)) == len(named):
        axis = ratio_axis("numbers in the teacher's checkpoint", known, short_number)
        return axis, {name: float(size) for name, size in sizes.items() if size}
    ordered = sorted(named, key=lambda name: (sizes[name] or 0 if len(known) == len(named) else depth_of(name), name))
    ticks = tuple((float(at), name) for at, name in enumerate(ordered))
    return Axis("teacher, by its size or depth", ticks), {name: float(at) for at, name in enumerate(ordered)}


def depth_of(name: str) -> int:
    """The layers that a network's name tells, as resnet20 does; 0 where it tells none."""
    numbers = re.findall(r"net[-_]?(\d+)", name.lower()) or re.findall(r"\d+", name)
    return int((numbers or ["0"])[0])


def _by_views(rows: Sequence[Row], differing: Sequence[str]) -> Plot:
    panels = []
    for group in groups_of(rows, ("frac", "views")):
        lines = lines_of(group.taught, "views", "frac", lambda one: f"{percent(one)} kept")
        if widest(lines) > 1:
            x = ratio_axis("cached views of each row", values_of(group.taught, "views"), lambda one: f"{one:g}")
            held = tuple(group.in_words(differing))
            lines += levels(group.plain)
            panels.append(Panel("Accuracy against cached views", held, x, TOP1, tuple(lines), SIGMA))
    return plot(
        "accuracy-views",
        "Accuracy against cached views, by the fraction kept",
        "Each view is one pass of the teacher over the data. The dashed levels are without KD.",
        panels,
        "needs two numbers of views or more of runs that agree in all else",
    )
