"""Drawing panels with matplotlib: one picture each, as wide as a phone can show, on white whatever is around it.

Colours are of Okabe and Ito's palette (Color Universal Design, 2008), which colour-blind eyes tell apart; markers
differ too. A colour means the same in every picture of a report. Lengths are in inches.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.report.plots import Axis, Hue, Line, Panel, Point, short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00", "#7F5F00")
_MARKERS = "osD^vPX*<>pdh8H"
_FRONT = "#444444"
_WIDTH, _DPI = 4.8, 160
_LEFT, _RIGHT, _TOP, _HEIGHT, _UNDER = 0.78, 0.16, 0.1, 2.75, 0.62
_LINE, _LETTERS, _SMALL, _USUAL = 0.19, 60, 10, 11
_LETTER = 0.078  # the mean width of one

Palette = dict[Hue, tuple[str, str]]  # a colour and a marker


def palette(hues: Iterable[Hue]) -> Palette:
    """A colour and a marker for each hue of a report: of names by their order, random first; of numbers by size."""
    by_kind: dict[str, list[Any]] = {}
    for kind, value in dict.fromkeys(hues):
        by_kind.setdefault(kind, []).append(value)
    found: Palette = {}
    for kind, values in by_kind.items():
        ordered = sorted(values, key=_rank)
        ranked = kind != "way" and len(ordered) > 1
        for at, value in enumerate(ordered):
            colour = _shade(at / (len(ordered) - 1)) if ranked else _COLOURS[at % len(_COLOURS)]
            # after as many markers as colours the pairs begin to differ
            found[kind, value] = (colour, _MARKERS[(at + at // len(_COLOURS)) % len(_MARKERS)])
        if kind == "front":
            found[kind, None] = (_FRONT, "")
    return found


def _rank(value: Any) -> tuple[Any, ...]:
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, float(value != "random"), str(value))


def _shade(place: float) -> str:
    """From dark to light, told apart by brightness alone: cividis without its palest end."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps["cividis"](0.84 * place))


def picture(panel: Panel, colours: Palette) -> bytes:
    """The panel as a PNG file; the same panel gives the same bytes."""
    from matplotlib.figure import Figure

    head = _Head.of(panel.title, panel.held)
    notes = _wrapped(panel.bars) if panel.bars and _has_bars(panel) else []
    above = head.height + 0.12
    columns = 1 if max((len(line.name) for line in panel.lines), default=0) > 22 else 2
    rows = -(-len(panel.lines) // columns)
    below = _UNDER + _LINE * len(notes) + 0.235 * rows + 0.12
    height = above + _HEIGHT + below
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    width = _WIDTH - _LEFT - _RIGHT
    axes = figure.add_axes((_LEFT / _WIDTH, below / height, width / _WIDTH, _HEIGHT / height))
    for line in _apart(panel):
        _draw(axes, line, *colours[line.hue])
    _dress(axes, panel)
    for line in panel.lines:
        if line.stairs:
            _name(axes, line.points, [point for one in panel.lines if one.loose for point in one.points])
    head.write(figure, height)
    for number, one in enumerate(notes):
        figure.text(0.12 / _WIDTH, (below - _UNDER - _LINE * number) / height, plain(one), fontsize=_SMALL, va="top")
    _legend(figure, axes, columns, (below - _UNDER - _LINE * len(notes)) / height)
    return png_of(figure)


@dataclass(frozen=True)
class _Head:
    """What stands above a picture: its title, and what is the same in all of it, in lines."""

    title: list[str]
    held: list[str]

    @classmethod
    def of(cls, title: str, held: Sequence[str]) -> _Head:
        return cls(_wrapped(title, _LETTERS - 6), _listed(held))

    @property
    def height(self) -> float:
        return _TOP + _LINE * (1.1 * len(self.title) + len(self.held))

    def write(self, figure: Figure, height: float) -> None:
        """On a figure of this height."""
        place = height - _TOP
        for lines, size, weight, step in ((self.title, _USUAL, "bold", 1.1), (self.held, _SMALL, "normal", 1.0)):
            for line in lines:
                figure.text(0.12 / _WIDTH, place / height, plain(line), fontsize=size, weight=weight, va="top")
                place -= _LINE * step


def _wrapped(text: str, letters: int = _LETTERS) -> list[str]:
    return textwrap.wrap(text, letters, break_long_words=True, break_on_hyphens=False)


def _listed(words: Sequence[str]) -> list[str]:
    """Broken between the words of a list, not within them."""
    return [line.replace("\xa0", " ") for line in _wrapped(", ".join(one.replace(" ", "\xa0") for one in words))]


def _has_bars(panel: Panel) -> bool:
    return any(point.low is not None for line in panel.lines for point in line.points)


def _apart(panel: Panel) -> list[Line]:
    """The lines, each moved a little to the side, so that bars at one place stand beside each other."""
    moved = [line for line in panel.lines if not (line.level or line.loose or line.stairs)]
    places = [point.x for line in moved for point in line.points]
    if len(moved) < 2 or not _has_bars(panel) or min(places) == max(places):
        return list(panel.lines)
    low, high = (math.log(end) if panel.x.log else end for end in (min(places), max(places)))
    step = min(0.014, 0.06 / len(moved)) * (high - low)
    found = []
    for line in panel.lines:
        by = step * (moved.index(line) - (len(moved) - 1) / 2) if line in moved else 0.0
        points = (replace(p, x=p.x * math.exp(by) if panel.x.log else p.x + by) for p in line.points)
        found.append(replace(line, points=tuple(points)))
    return found


def _draw(axes: Axes, line: Line, colour: str, marker: str) -> None:
    look: Any = {"color": colour, "label": plain(line.name)}
    points = line.points
    if line.stairs:
        axes.step([p.x for p in points], [p.y for p in points], where="post", linewidth=1.2, zorder=1, **look)
        return
    if line.level:
        axes.axhline(points[0].y, linestyle=(0, (4, 3)), linewidth=1.4, zorder=1, **look)
        return
    ys, x = [p.y for p in points], [p.x for p in points]
    inside: Any = {"markerfacecolor": "white" if line.plain else colour, "markeredgecolor": colour}
    style: Any = "none" if line.loose else (0, (4, 3)) if line.plain else "-"
    dots = marker if line.loose or len(points) <= 15 else ""
    axes.plot(x, ys, linestyle=style, linewidth=1.6, marker=dots, markersize=5.5, **inside, **look)
    barred = [p for p in points if p.low is not None and p.high is not None]
    if barred:
        ends = np.array([[p.y - float(p.low or 0), float(p.high or 0) - p.y] for p in barred]).T
        thin = 0.8 if line.loose else 1.2
        axes.errorbar(
            [p.x for p in barred], [p.y for p in barred], ends.clip(0), fmt="none", ecolor=colour, elinewidth=thin,
            capsize=0 if line.loose else 3, alpha=0.45 if line.loose else 1,
        )  # fmt: skip


def _name(axes: Axes, front: Sequence[Point], others: Sequence[Point]) -> None:
    """The names of a front's points, the most accurate first, each to the side where it covers no other name, point or
    edge; where there is none, the table alone names it."""
    from matplotlib.patheffects import withStroke

    centres = [axes.transData.transform((point.x, point.y)) for point in others]
    taken: list[tuple[float, float, float, float]] = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    box = axes.get_window_extent()
    for point in reversed(front):
        x, y = axes.transData.transform((point.x, point.y))
        wide, high = _LETTER * len(point.name) * _DPI, 0.17 * _DPI
        for across, up in ((-1, 1), (1, -1), (1, 1), (-1, -1)):
            left = x + 10 if across > 0 else x - 10 - wide
            bottom = y + 6 if up > 0 else y - 6 - high
            place = (left, bottom, left + wide, bottom + high)
            inside = left >= box.x0 and place[2] <= box.x1 + 20 and bottom >= box.y0 and place[3] <= box.y1 + 10
            if inside and not any(_meet(place, other) for other in taken):
                at = axes.transData.inverted().transform((left, bottom))
                text = axes.text(at[0], at[1], plain(point.name), fontsize=_SMALL, ha="left", va="bottom", zorder=5)
                text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
                taken.append(place)
                break


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(plain(panel.x.label), fontsize=_USUAL)
    axes.set_ylabel(plain(panel.y.label), fontsize=_USUAL)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.6)
    _scale(axes, panel.x, panel)
    low, high = axes.get_ylim()
    if panel.y.zero:
        axes.axhline(0, color="#555555", linewidth=1, zorder=0)
        axes.set_ylim(min(low, 0), max(high, 0))
    if panel.y.ends is not None:
        first, last = panel.y.ends
        margin = 0.03 * (min(high, last) - max(low, first))
        axes.set_ylim(max(low, first - margin), min(high, last + margin))


def _scale(axes: Axes, x: Axis, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    places = [point.x for line in panel.lines if not line.level for point in line.points]
    if x.log:
        axes.set_xscale("log")
    if x.ticks:
        axes.set_xticks([place for place, _ in x.ticks], [plain(_end(name)) for _, name in x.ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    elif x.label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif x.log:
        subs = (1.0,) if max(places) >= 100 * min(places) else (1.0, 2.0, 5.0)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    if not x.ticks:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if x.ticks and max(places) > min(places):
        low, high = (math.log(end) if x.log else end for end in (min(places), max(places)))
        margin = _beside(x.ticks[-1][1]) * (high - low)
        ends = (low - margin, high + margin)
        axes.set_xlim(*((math.exp(end) for end in ends) if x.log else ends))


def _beside(name: str) -> float:
    """How much room there is left and right of all points, by their range, for the half of a name below the last."""
    part = max(0.0, 0.04 * len(_end(name)) - _RIGHT) / (_WIDTH - _LEFT - _RIGHT)
    return max(0.08, part / (1 - 2 * part))


def _end(name: str) -> str:
    """Names mostly differ at their ends."""
    return name if len(name) <= 16 else f"…{name[-15:]}"


def _legend(figure: Figure, axes: Axes, columns: int, place: float) -> None:
    handles, names = axes.get_legend_handles_labels()
    names = [name if len(name) <= 44 else f"{name[:20]}…{name[-23:]}" for name in names]
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.01, place), ncols=columns, fontsize=_SMALL, frameon=False,
        handlelength=2.6, columnspacing=1.2, borderpad=0.2, labelspacing=0.35,
    )  # fmt: skip


def contact_sheet(kept_ckhw3: np.ndarray, names: Sequence[str], title: str, held: Sequence[str]) -> bytes:
    """A PNG file of kept images (c, k, h, w, 3) uint8, a line for each of c classes, named at its side."""
    from matplotlib.figure import Figure

    classes, count, height, width, _ = kept_ckhw3.shape
    tiles = np.pad(kept_ckhw3, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255)
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(classes * (height + 1), count * (width + 1), 3)
    head = _Head.of(title, held)
    shown = [plain(name if len(name) <= 15 else f"{name[:14]}…") for name in names]
    left, above = 0.2 + 0.085 * max(map(len, shown)), head.height + 0.08
    wide = _WIDTH - left - 0.1
    high = wide * sheet.shape[0] / sheet.shape[1]
    tall = above + high + 0.1
    figure = Figure(figsize=(_WIDTH, tall), dpi=_DPI, facecolor="white")
    axes = figure.add_axes((left / _WIDTH, 0.1 / tall, wide / _WIDTH, high / tall))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.set_yticks([(height + 1) * (at + 0.5) - 1 for at in range(classes)], shown, fontsize=_SMALL)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    head.write(figure, tall)
    return png_of(figure)


def plain(text: str) -> str:
    """Text in which a dollar sign is a dollar sign, and no formula begins."""
    return text.replace("$", r"\$")


def png_of(figure: Figure) -> bytes:
    with warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(file, format="png", metadata={"Software": None})
        return file.getvalue()
