"""Contact sheets: samples as tiles, each with its row, its score, its label and what the teacher takes it for.

Shapes: n rows of the data, t tiles, h and w height and width of a sample, y and x of the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from toolkit.report.montage import FAINT, FRAME, INK, LINE, MARGIN, PAPER, font, paste, text_width

GROUPS = ("hardest", "easiest", "random")
RIGHT, WRONG = (30, 120, 60), (200, 30, 30)
_TITLE, _CAPTION = 16, 12  # font sizes
_LINES = 3  # of a tile's caption
_CAPTION_LINE, _BETWEEN, _NARROWEST, _WIDEST = 15, 14, 84, 128
_FULL_WIDTH = 1200  # pixels, of a sheet whose lines may be broken anywhere


@dataclass(frozen=True)
class Tile:
    """A sample's caption. `guess` is None where the teacher was not asked; `right` whether it names the label."""

    row: int
    score: float
    label: str
    guess: str | None = None
    right: bool = True


@dataclass(frozen=True)
class Group:
    """A title, and tiles line by line."""

    title: str
    lines: tuple[tuple[Tile, ...], ...]

    @property
    def tiles(self) -> tuple[Tile, ...]:
        return tuple(tile for line in self.lines for tile in line)


def pick_groups(scores_n: np.ndarray, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """For each of GROUPS the positions, (min(count, n),) int64, of the highest scores, highest first, of the lowest,
    lowest first, and of some drawn at random. Among equal scores chance decides. Raises ValueError for a NaN."""
    if np.isnan(scores_n).any():
        raise ValueError("a score that is not a number has no place in an order")
    shuffled_n = rng.permutation(len(scores_n))
    ascending_n = shuffled_n[np.argsort(scores_n[shuffled_n], kind="stable")]
    drawn_n = rng.permutation(len(scores_n))
    return dict(zip(GROUPS, (ascending_n[::-1][:count], ascending_n[:count], drawn_n[:count]), strict=True))


def shortened(text: str, width: int, size: int = _CAPTION) -> str:
    """As much of the text as fits into `width` pixels."""
    if text_width(text, size) <= width:
        return text
    kept = next((end for end in range(len(text), 0, -1) if text_width(f"{text[:end]}...", size) <= width), 0)
    return f"{text[:kept].rstrip()}..."


@dataclass(frozen=True)
class SheetLayout:
    """Where everything stands, in pixels: groups below each other, their tiles in columns of one width. `height` and
    `width` are a sample's own, `scale` the side of the square that one of its pixels becomes."""

    groups: tuple[Group, ...]
    height: int
    width: int
    scale: int

    @cached_property
    def column(self) -> int:
        """The width of a tile with its caption."""
        return column_width([tile for group in self.groups for tile in group.tiles], self.width * self.scale)

    @property
    def _line(self) -> int:
        """The height of a line of tiles."""
        return self.height * self.scale + 3 + _LINES * _CAPTION_LINE + _BETWEEN

    def _top(self, group: int) -> int:
        """Where a group begins: its title."""
        above = sum(LINE + MARGIN + len(before.lines) * self._line for before in self.groups[:group])
        return MARGIN + above

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        columns = max((len(line) for group in self.groups for line in group.lines), default=1)
        tiles = columns * (self.column + _BETWEEN) - _BETWEEN
        titles = max((text_width(group.title, _TITLE) for group in self.groups), default=0)
        below = text_width(self._legend, _CAPTION)
        return self._top(len(self.groups)) + LINE + MARGIN, 2 * MARGIN + max(tiles, titles, below)

    @property
    def _legend(self) -> str:
        guessed = any(tile.guess is not None for group in self.groups for tile in group.tiles)
        return f"row and score; label{'; > what the teacher takes it for, red where wrong' if guessed else ''}"

    def cell(self, group: int, line: int, column: int) -> tuple[int, int]:
        """The y and x at which a tile with its caption begins."""
        top = self._top(group) + LINE + MARGIN + line * self._line
        return top, MARGIN + column * (self.column + _BETWEEN)

    def tile(self, group: int, line: int, column: int) -> tuple[slice, slice]:
        """The picture's y and x of a sample, in the middle of its column."""
        top, left = self.cell(group, line, column)
        left += (self.column - self.width * self.scale) // 2
        return slice(top, top + self.height * self.scale), slice(left, left + self.width * self.scale)

    def places(self) -> Iterator[tuple[Tile, int, int, int]]:
        """Every tile with its group, line and column, in the order of the samples."""
        for number, group in enumerate(self.groups):
            for down, line in enumerate(group.lines):
                yield from ((tile, number, down, across) for across, tile in enumerate(line))

    def write(self, draw: ImageDraw.ImageDraw) -> None:
        """Titles and captions."""
        for number, group in enumerate(self.groups):
            draw.text((MARGIN, self._top(number) + LINE // 2), group.title, INK, font(_TITLE), "lm")
        draw.text((MARGIN, self._top(len(self.groups)) + LINE // 2), self._legend, FAINT, font(_CAPTION), "lm")
        for tile, *place in self.places():
            self._caption(draw, tile, *self.cell(*place))

    def _caption(self, draw: ImageDraw.ImageDraw, tile: Tile, top: int, left: int) -> None:
        def line(number: int) -> int:
            return top + self.height * self.scale + 3 + _CAPTION_LINE // 2 + number * _CAPTION_LINE

        small = font(_CAPTION)
        draw.text((left, line(0)), str(tile.row), FAINT, small, "lm")
        draw.text((left + self.column, line(0)), score_text(tile.score), FAINT, small, "rm")
        draw.text((left, line(1)), shortened(tile.label, self.column), INK, small, "lm")
        if tile.guess is not None:
            colour = RIGHT if tile.right else WRONG
            draw.text((left, line(2)), shortened(_said(tile.guess), self.column), colour, small, "lm")


def score_text(score: float) -> str:
    """Three significant digits, or a whole number."""
    return f"{score:,.0f}" if score == round(score) and abs(score) < 1e6 else f"{score:#.3g}"


def _said(guess: str) -> str:
    return f"> {guess}"


def column_width(tiles: Sequence[Tile], image_width: int) -> int:
    """As wide as the image or the longest caption, within reason."""
    captions = [f"{tile.row}   {score_text(tile.score)}" for tile in tiles]
    names = [name for tile in tiles for name in (tile.label, *([] if tile.guess is None else [_said(tile.guess)]))]
    longest = max((text_width(text, _CAPTION) for text in {*captions, *names}), default=0)
    heads = max((text_width(text, _CAPTION) for text in captions), default=0)
    return max(image_width, heads, min(max(longest, _NARROWEST), _WIDEST))


def broken_into_lines(tiles: Sequence[Tile], image_width: int) -> tuple[tuple[Tile, ...], ...]:
    """Tiles in lines of equal length that fill a sheet's width."""
    most = max(1, (_FULL_WIDTH - 2 * MARGIN + _BETWEEN) // (column_width(tiles, image_width) + _BETWEEN))
    lines = max(1, -(-len(tiles) // most))
    length = max(1, -(-len(tiles) // lines))
    return tuple(tuple(tiles[start : start + length]) for start in range(0, len(tiles), length))


def sheet(samples_thw3: np.ndarray, layout: SheetLayout) -> np.ndarray:
    """The picture, (y, x, 3) uint8, of samples (t, h, w, 3) uint8 in the order of `layout.places()`.

    What the teacher gets wrong has a red frame."""
    picture = Image.new("RGB", layout.size[::-1], PAPER)
    layout.write(ImageDraw.Draw(picture))
    picture_yx3 = np.array(picture)
    for sample_hw3, (tile, *place) in zip(samples_thw3, layout.places(), strict=True):
        frame, thick = (FRAME, 1) if tile.right else (WRONG, 2)
        paste(picture_yx3, sample_hw3, layout.tile(*place), layout.scale, frame, thick)
    return picture_yx3
