"""What accuracy costs, and which settings nothing else beats: no setting that costs as little is more accurate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from toolkit.report.panels import HELD, percent
from toolkit.report.plots import SIGMA, TOP1, Axis, Line, Panel, Plot, Point, plot, ratio_axis, short_number
from toolkit.report.runs import Row, differing, groups, in_order

NOT_COUNTED = (
    "Not counted: packing the data, training the teacher, choosing the rows, testing the student, starting up, and "
    "runs that failed or were not kept."
)


@dataclass(frozen=True)
class Cost:
    """A column of a run's row, in the unit that its axis names; `alone` are the columns that runs must share for their
    costs to mean the same."""

    column: str
    axis: str
    read: str
    alone: tuple[str, ...] = ()


COSTS = (
    Cost(
        "student_passes",
        "images the student is trained on",
        "Each is one forward and one backward pass of the student; a search for alpha is counted.",
    ),
    Cost(
        "teacher_passes",
        "images the teacher is run on",
        "Forward passes behind the targets: once for all students that share a cache. 0 for a run without KD whose "
        "rows no teacher chose; those whose rows one chose are left out.",
    ),
    Cost(
        "seconds",
        "seconds of training",
        "The epochs' own time; of runs on one device with one number of threads. Load on the machine is in it.",
        ("device", "precision", "threads", "machine"),
    ),
    Cost(
        "bytes",
        "bytes of images, targets and cache",
        "The subset's images (its share of the packed file where it only points there), its targets, and the cache.",
    ),
)


_ALONE = {"threads": "threads {}"}
_REST = "all other settings may differ"


def cost_plots(rows: Sequence[Row]) -> list[Plot]:
    """A plot for each of COSTS, of `panels.prepared` rows, with a panel for each data set."""
    return [_cost_plot(rows, cost) for cost in COSTS]


def _cost_plot(rows: Sequence[Row], cost: Cost) -> Plot:
    panels = []
    known = [row for row in rows if row.get(cost.column) is not None]
    apart = ("dataset_is", *cost.alone)
    for values, members in groups(in_order(known, "dataset_is"), apart).items():
        named = differing(members, [*HELD, "epochs", "iterations"])
        points = _points(members, cost, named)
        if len({round(point.x, 6) for _, _, point in points}) < 2:
            continue
        front = pareto_front([point for _, _, point in points])
        lines = [
            Line(f"{way}, {'with' if taught else 'no'} KD", ("way", way), tuple(part), plain=not taught, loose=True)
            for (way, taught), part in _by_kind(points).items()
        ]
        lines.append(Line("Pareto front", ("front", None), front, stairs=True))
        told = dict(zip(apart, values, strict=True))
        held = (*(_ALONE.get(name, "{}").format(one) for name, one in told.items() if one is not None), _REST)
        x = ratio_axis(cost.axis, [point.x for _, _, point in points], short_number)
        x = Axis(cost.axis, log=x.log)  # round numbers read better than the costs themselves
        panels.append(Panel(f"Accuracy against {cost.axis}", held, x, TOP1, tuple(lines), SIGMA))
    return plot(
        f"cost-{cost.column.replace('_', '-')}",
        f"Accuracy against cost: {cost.axis}",
        f"{cost.read} Each point is one setting: its seeds' mean accuracy and their median cost; all other "
        "settings may differ. On the front, "
        "nothing as cheap is as accurate.",
        panels,
        f"the runs' records tell no two different costs ({cost.axis})",
    )


def _points(rows: Sequence[Row], cost: Cost, named: Sequence[str]) -> list[tuple[str, bool, Point]]:
    """A point for each setting, with its way of choosing rows and whether it has KD."""
    found = []
    for members in groups([{**row, "_": _key(row)} for row in rows], ["_"]).values():
        values, first = [row["top1"] for row in members], members[0]
        y, sd = mean(values), stdev(values) if len(values) > 1 else None
        low, high = (None, None) if sd is None else (y - sd, y + sd)
        x = median(row[cost.column] for row in members)  # one stalled run says nothing of the others
        found.append((first["way"], first["taught"], Point(x, y, low, high, len(values), _name(first, named))))
    return found


def _key(row: Row) -> str:
    return repr([row.get(column) for column in (*HELD, "epochs", "iterations")])


def _name(row: Row, named: Sequence[str]) -> str:
    """What tells a setting from the others here, but for its way, which its colour tells."""
    said = []
    for column, text in _TEXTS.items():
        if column in named and row.get(column) is not None:
            said.append(text(row[column]))
    if not row["taught"] and "asked" in named:
        said.append("no KD")
    return ", ".join(said)


_TEXTS: dict[str, Callable[..., str]] = {
    "frac": percent,
    "asked": lambda one: f"α {one:g}" if isinstance(one, float) else f"α {one}",
    "loss": str,
    "temperature": lambda one: f"τ {one:g}",
    "views": lambda one: f"{one} views",
    "match": str,
    "arch": str,
    "teacher_is": str,
    "epochs": lambda one: f"{one} ep.",
}


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those than which no other costs as little (x) and is as accurate (y), cheapest first; of equals the first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.x, -one.y)):
        if not found or point.y > found[-1].y:
            found.append(point)
    return tuple(found)


def _by_kind(points: Sequence[tuple[str, bool, Point]]) -> dict[tuple[str, bool], list[Point]]:
    kinds: dict[tuple[str, bool], list[Point]] = {}
    for way, taught, point in sorted(points, key=lambda one: (one[0] != "random", one[0], not one[1], one[2].x)):
        kinds.setdefault((way, taught), []).append(point)
    return kinds
