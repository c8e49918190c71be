"""Tables, the rule's choice and the plot of the study of views: python -m benchmarks.views_report [--plot]."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import in_words, read_lines
from benchmarks.views import EVERY, FILE, LIVE, NO_KD, SEEDS
from toolkit.report.statistics import Ratio, mean_and_sigma, paired_difference, paired_ratio
from toolkit.report.tables import table

PLOT = Path(__file__).parent.parent / "docs" / "views.svg"
LEAST_RETAINED = 0.8  # of the gain, at the lower end of its 95 % interval: the rule
MARGIN = 0.3  # points between a live teacher and a view per epoch

Group = dict[str, dict[int, dict[str, Any]]]  # cell, seed: the record


def groups(lines: list[dict[str, Any]]) -> tuple[dict[tuple[str, float], Group], list[str]]:
    """(the records of each data set and fraction, of the cells that have all seeds; the others, in words)"""
    every: dict[tuple[str, float], Group] = {}
    for line in lines:
        group = every.setdefault((line["dataset"], line["fraction"]), {})
        group.setdefault(line["cell"], {})[line["seed"]] = line
    whole = {key: {c: s for c, s in group.items() if len(s) == len(SEEDS)} for key, group in every.items()}
    begun = [
        f"{dataset} {fraction:g}, {cell}: {len(seeds)} of {len(SEEDS)} seeds"
        for (dataset, fraction), group in sorted(every.items())
        for cell, seeds in group.items()
        if len(seeds) < len(SEEDS)
    ]
    return whole, begun


def paired(group: Group, measure: str, *cells: str) -> list[list[float]]:
    """One list of values per cell, over the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(group[cell]) for cell in cells)))
    return [[group[cell][seed][measure] for seed in seeds] for cell in cells]


def gains(group: Group, measure: str, cell: str) -> tuple[list[float], list[float]]:
    """The gains over no KD of a cell and of a view per epoch, seed by seed."""
    ours, every, none = paired(group, measure, cell, EVERY.name, NO_KD.name)
    return [a - c for a, c in zip(ours, none, strict=True)], [b - c for b, c in zip(every, none, strict=True)]


def retained(group: Group, measure: str, cell: str) -> Ratio:
    return paired_ratio(*gains(group, measure, cell))


def by_views(cell: str) -> tuple[int, str]:
    """No KD first, then by the number of views, then a view per epoch, the live teacher last."""
    ends = {NO_KD.name: -1, EVERY.name: 10**6, LIVE.name: 10**7}
    return (ends[cell], "") if cell in ends else (int(cell.split()[0]), cell)


def rows_of(group: Group) -> list[list[str]]:
    rows = []
    for cell in sorted(group, key=by_views):
        values = [mean_and_sigma([line[measure] for line in group[cell].values()]) for measure in ("holdout", "top1")]
        share, gain = "", ""
        if cell != NO_KD.name:
            difference = paired_difference(*paired(group, "top1", cell, NO_KD.name))
            gain = difference.in_words
        if cell not in (NO_KD.name, EVERY.name):
            kept = retained(group, "holdout", cell)
            share = f"{kept.ratio:.2f} [{kept.low:.2f}, {kept.high:.2f}]"
        rows.append([cell, values[0], share, values[1], gain, str(len(group[cell]))])
    return rows


def chosen(studies: list[Group]) -> str | None:
    """The cell that the rule takes, of those that every one of the studies has; None where none passes."""
    common = set.intersection(*(set(group) for group in studies)) - {NO_KD.name, LIVE.name, EVERY.name}
    passing = [c for c in common if all(retained(group, "holdout", c).low >= LEAST_RETAINED for group in studies)]
    views: Callable[[str], tuple[int, float]] = lambda c: (  # noqa: E731
        int(c.split()[0]),
        -mean(retained(group, "holdout", c).ratio for group in studies),
    )
    return min(passing, key=views, default=None)


def live_against_cached(studies: list[Group]) -> str:
    pairs = [paired(group, "top1", LIVE.name, EVERY.name) for group in studies if LIVE.name in group]
    if not pairs:
        return "no live teacher"
    found = paired_difference([x for live, _ in pairs for x in live], [x for _, every in pairs for x in every])
    verdict = "within" if max(abs(found.low), abs(found.high)) <= MARGIN else "not within"
    return (
        f"live teacher less a view per epoch, test split: {found.in_words} "
        f"points over {found.n} pairs: {verdict} ±{MARGIN}"
    )


def plot(found: dict[tuple[str, float], Group]) -> None:
    """Accuracy on the test split against the number of cached views, a line per match."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kdtool"  # so that the same data give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.6), squeeze=False, layout="constrained")
    for axis, ((dataset, fraction), group) in zip(axes[0], sorted(found.items()), strict=True):
        for match, colour in (("exact", "C0"), ("mean", "C1"), ("nearest", "C2")):
            cells = sorted((cell for cell in group if cell.endswith(f" {match}")), key=by_views)
            points = [[line["holdout"] for line in group[cell].values()] for cell in cells]
            error = [paired_difference(values, [0.0] * len(values)) for values in points]
            low = [mean(values) - e.low for values, e in zip(points, error, strict=True)]
            axis.errorbar([int(c.split()[0]) for c in cells], [e.mean for e in error], low, fmt="o-", color=colour,
                          capsize=2, label=match)  # fmt: skip
        for cell, style in ((NO_KD.name, ":"), (EVERY.name, "-"), (LIVE.name, "--")):
            if cell in group:
                centre = mean(line["holdout"] for line in group[cell].values())
                axis.axhline(centre, color="0.4", linestyle=style, linewidth=1, label=cell)
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axis.set_title(f"{dataset}, {fraction:g} of the rows", fontsize=10)
        axis.set_xlabel("cached views")
    axes[0][0].set_ylabel("accuracy on held-out images, %")
    axes[0][-1].legend(fontsize=8)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    lines = read_lines(FILE)
    if not lines:
        sys.exit(f"{FILE}: no results yet. Run: python -m benchmarks.views")
    found, begun = groups(lines)
    header = ["views and match", "held out, %", "gain kept", "test, %", "gain over no KD", "seeds"]
    for (dataset, fraction), group in sorted(found.items()):
        print(f"\n{dataset}, {fraction:g} of the rows\n\n{table(header, rows_of(group))}")
    first = lines[0]
    print(f"\n{first['arch']}, {first['epochs']} epochs, alpha 1, tau 4, last epoch; {in_words(first['machine'])}.")
    for dataset in sorted({dataset for dataset, _ in found}):
        studies = [group for (name, _), group in sorted(found.items()) if name == dataset]
        print(f"{dataset}: the rule takes {chosen(studies) or 'none'}; {live_against_cached(studies)}")
    print(f"all of them: the rule takes {chosen(list(found.values())) or 'none'}")
    if begun:
        print(f"begun, and left out: {'; '.join(begun)}")
    if "--plot" in sys.argv:
        plot(found)


if __name__ == "__main__":
    main()
