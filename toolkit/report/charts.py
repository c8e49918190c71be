"""Charts: histograms of scores, and heat maps with their numbers in the cells. Figures without a window or a global.

Shapes: n rows, k names, b bins.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS, _DPI = 60, 110
_KEPT, _DROPPED = "#1f77b4", "#e0873c"
_LOG_FROM = 30  # how many times the middle bar the highest must be before the y axis is logarithmic


class Bins(NamedTuple):
    """Counts, (b,) int64, of kept and of dropped rows between edges (b + 1,)."""

    edges: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray


def binned(scores_n: np.ndarray, kept_n: np.ndarray) -> Bins:
    """Bins of equal width, one for each integer where those are few; `kept_n` is (n,) bool.

    Raises ValueError for a score that is not finite."""
    edges = _edges(scores_n)
    return Bins(edges, *(np.histogram(scores_n[part_n], edges)[0] for part_n in (kept_n, ~kept_n)))


def _edges(scores_n: np.ndarray) -> np.ndarray:
    low, high = float(scores_n.min(initial=np.inf)), float(scores_n.max(initial=-np.inf))
    if high - low <= _BINS and np.array_equal(scores_n, np.rint(scores_n)):
        return np.arange(low, high + 2) - 0.5
    return np.histogram_bin_edges(scores_n, _BINS)


def histogram(scores_n: np.ndarray, kept_n: np.ndarray | None, score: str, title: str) -> Figure:
    """How a score is spread: over all rows, or kept ones and dropped ones (`kept_n`, (n,) bool) in one chart."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    everything = kept_n is None
    bins = binned(scores_n, np.ones(len(scores_n), dtype=bool) if kept_n is None else kept_n)
    figure = Figure(figsize=(9, 5), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    if not everything:
        _steps(axes, bins.edges, bins.dropped, "dropped", _DROPPED)
    _steps(axes, bins.edges, bins.kept, "all" if everything else "kept", _KEPT)
    if _wants_log(np.concatenate([bins.kept, bins.dropped])):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(bottom=0.7)  # a single row is still a bar
    axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else ""))
    axes.set_xlabel(_plain(score), fontsize=12)
    axes.set_ylabel("rows", fontsize=12)
    axes.set_title(_plain("\n".join(_short(line, 90) for line in title.split("\n"))), fontsize=12, loc="left")
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=11, frameon=False)
    return figure


def _wants_log(counts: np.ndarray) -> bool:
    """Whether on an even scale most bars would be too low to see."""
    return bool(counts.any() and counts.max() > _LOG_FROM * np.median(counts[counts > 0]))


def _steps(axes: Axes, edges: np.ndarray, counts: np.ndarray, name: str, colour: str) -> None:
    """One part's bars, outlined, and filled so that the other part shows through."""
    label = f"{name}: {int(counts.sum()):,} rows"
    axes.stairs(counts, edges, fill=True, facecolor=f"{colour}59", edgecolor=colour, linewidth=1.6, label=label)


@dataclass(frozen=True)
class HeatMap:
    """A square of values (k, k) between `low` and `high`, NaN where there is none, and what chance would give, or
    None."""

    title: str
    names: Sequence[str]
    values_kk: np.ndarray
    low: float
    high: float
    by_chance_kk: np.ndarray | None = None

    def text(self, row: int, column: int) -> str:
        """What stands in a cell: the value, and chance's below it."""
        value = self.values_kk[row, column]
        shown = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        chance = "" if self.by_chance_kk is None or row == column else f"\n({self.by_chance_kk[row, column]:.2f})"
        return f"{shown}{chance}"


def heat_maps(maps: Sequence[HeatMap]) -> Figure:
    """The maps in one figure with cells of one size, side by side where that is not too wide, else below each other."""
    from matplotlib.figure import Figure

    boxes = [_Box.around(one) for one in maps]
    beside = sum(box.width for box in boxes) <= _WIDEST
    widths, heights = [box.width for box in boxes], [box.height for box in boxes]
    width, height = (sum(widths), max(heights)) if beside else (max(widths), sum(heights))
    figure = Figure(figsize=(width, height), dpi=_DPI)
    left, top = 0.0, height
    for one, box in zip(maps, boxes, strict=True):
        place = (left + box.names, top - box.above - box.cells, box.cells, box.cells)
        axes = figure.add_axes((place[0] / width, place[1] / height, place[2] / width, place[3] / height))
        _draw(axes, one)
        left, top = (left + box.width, top) if beside else (left, top - box.height)
    return figure


_CELL, _CHARACTER, _AROUND, _WIDEST = 0.62, 0.08, 0.25, 24  # inches
_LONGEST = 44  # characters of a name


class _Box(NamedTuple):
    """What a map takes, in inches: names left of it, its cells, what is above them, and all."""

    names: float
    cells: float
    above: float
    width: float
    height: float

    @classmethod
    def around(cls, one: HeatMap) -> _Box:
        lines = one.title.split("\n")
        names = _AROUND + _CHARACTER * max(len(_short(name, _LONGEST)) for name in one.names)
        cells = _CELL * len(one.names)
        above = _AROUND + 0.1 + 0.2 * len(lines)
        width = names + max(cells, 1.2 * _CHARACTER * max(map(len, lines))) + _AROUND
        return cls(names, cells, above, width, above + cells + 0.75 * names + _AROUND)


def _draw(axes: Axes, one: HeatMap) -> None:
    k = len(one.names)
    image = axes.imshow(
        one.values_kk, cmap="RdBu_r" if one.low < 0 else "Blues", vmin=one.low, vmax=one.high, aspect="auto"
    )
    axes.set_facecolor("#eeeeee")  # which shows where there is no value
    names = [_plain(_short(name, _LONGEST)) for name in one.names]
    axes.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=10)
    axes.set_yticks(range(k), names, fontsize=10)
    axes.set_title(_plain(one.title), fontsize=12, pad=8, loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row in range(k):
        for column in range(k):
            colour = "white" if _dark(image, one.values_kk[row, column]) else "black"
            axes.text(column, row, one.text(row, column), ha="center", va="center", fontsize=9, color=colour)


def _dark(image: Any, value: float) -> bool:
    """Whether white is easier to read on a value's colour than black."""
    if np.isnan(value):
        return False
    red, green, blue, _ = image.cmap(image.norm(value))
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)


def _short(text: str, most: int) -> str:
    """The text, or its beginning and its end where it is longer: names mostly differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 3]}…{text[len(text) + 1 - most + most // 3 :]}"


def _plain(text: str) -> str:
    """Text in which a dollar sign is a dollar sign, and no formula begins."""
    return text.replace("$", r"\$")


def save_png(figure: Figure, path: Path) -> None:
    """Writes the figure; the same figure gives the same file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(path, format="png", metadata={"Software": None})
