"""Learning curves: a run's loss and accuracy on its own training rows, epoch by epoch, averaged over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

from toolkit.report.panels import Group, groups_of
from toolkit.report.plots import Axis, Line, Panel, Plot, Point, plot
from toolkit.report.runs import Row, groups, in_order

CURVES = {
    "loss": ("Training loss", Axis("training loss"), 1.0),
    "train_top1": ("Accuracy on the training rows", Axis("accuracy on training rows, %"), 100.0),
}


def learning_plots(rows: Sequence[Row], differing: Sequence[str]) -> list[Plot]:
    """Two plots, of `panels.prepared` rows that may tell `history`: a record for each epoch, with `epoch`, `loss` and
    `train_top1` (a share)."""
    told = [row for row in rows if row.get("history")]
    grouped = groups_of(told, ("asked",))
    return [_plot(grouped, what, differing) for what in CURVES]


def _plot(grouped: Sequence[Group], what: str, differing: Sequence[str]) -> Plot:
    title, y, unit = CURVES[what]
    panels = []
    for group in grouped:
        lines = []
        for (asked,), members in groups(in_order(group.rows, "alpha"), ["asked"]).items():
            points = _points(members, what, unit)
            name = "no KD" if asked is None else f"α {asked:g}" if isinstance(asked, float) else f"α {asked}"
            lines += [Line(name, ("asked", asked), points, plain=asked is None)] if len(points) > 1 else []
        if lines:
            held = tuple(group.in_words(differing))
            panels.append(Panel(f"{title} by epoch", held, Axis("epoch"), y, tuple(lines)))
    return plot(
        f"learning-{what.replace('_', '-')}",
        f"Learning curves: {title[0].lower()}{title[1:]}",
        "Means over seeds. Losses of different α weigh different things: compare their shapes, not their heights."
        if what == "loss"
        else "Means over seeds, of the views that were shown, as the epoch went on.",
        panels,
        "needs runs of two epochs or more with their metrics.jsonl, or lines with a history",
    )


def _points(rows: Sequence[Row], what: str, unit: float) -> tuple[Point, ...]:
    values: dict[int, list[float]] = {}
    for epoch in (epoch for row in rows for epoch in row["history"]):
        found: Any = epoch.get(what)
        if isinstance(found, (int, float)) and isinstance(epoch.get("epoch"), int):
            values.setdefault(epoch["epoch"], []).append(unit * found)
    return tuple(Point(epoch, mean(found), None, None, len(found)) for epoch, found in sorted(values.items()))
