"""A picture of views: a line for each row of the data, a column for each slot, every pixel enlarged to a square.

Shapes: r rows, k slots, h and w height and width of a view, y and x of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN, GAP, LINE = 10, 2, 18
PAPER, INK, FAINT = (255, 255, 255), (40, 40, 40), (120, 120, 120)
FRAME = (130, 150, 180)  # bluish: neither black nor white images run into it
_BETWEEN_COLUMNS, _LONGEST_NAME = 16, 24
_HEADINGS = ("row", "class")


@lru_cache
def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def text_width(text: str, size: int = 13) -> int:
    """In pixels, rounded up."""
    return ceil(font(size).getlength(text))


def class_label(names: Sequence[str], label: int) -> str:
    """The class's name, or its number where Pillow's own font, which is ASCII, can't write the name."""
    name = names[label]
    if not (name.isascii() and name.isprintable() and name.strip()):
        return str(label)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3].rstrip()}..."


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels. `labels_r` are row numbers and class labels, `height` and `width` a view's
    own, `scale` the side of the square that one of its pixels becomes."""

    labels_r: tuple[tuple[int, str], ...]
    slots: int
    height: int
    width: int
    scale: int

    @cached_property
    def _label_ends(self) -> tuple[int, int]:
        """The right ends of the columns of row numbers and of class labels."""
        number = max(text_width(_HEADINGS[0]), text_width(str(max(row for row, _ in self.labels_r))))
        name = max(map(text_width, {_HEADINGS[1], *(name for _, name in self.labels_r)}))
        return MARGIN + number, MARGIN + number + _BETWEEN_COLUMNS + name

    @property
    def _pitch(self) -> tuple[int, int]:
        """From a tile to the next one below (never less than a line of text) and to the right."""
        return max(self.height * self.scale, LINE) + GAP, self.width * self.scale + GAP

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        bottom, right = self.tile(len(self.labels_r) - 1, self.slots - 1)
        return max(bottom.stop, bottom.start + LINE) + MARGIN, right.stop + MARGIN

    def tile(self, row: int, slot: int) -> tuple[slice, slice]:
        """The picture's y and x of a view. Slot 0, the canonical view, stands a little apart."""
        down, across = self._pitch
        top = MARGIN + LINE + row * down
        left = self._label_ends[1] + _BETWEEN_COLUMNS + slot * across + (3 * GAP if slot else 0)
        return slice(top, top + self.height * self.scale), slice(left, left + self.width * self.scale)

    def headings(self) -> dict[int, str]:
        """What stands above the slots: as much as fits, if need be not above every one."""
        across = self._pitch[1]
        long, short = text_width(f"slot {self.slots - 1}"), text_width(str(self.slots - 1)) + MARGIN // 2
        if long <= across:
            return {slot: f"slot {slot}" for slot in range(self.slots)}
        return {slot: str(slot) for slot in range(0, self.slots, ceil(short / across))}

    def write(self, draw: ImageDraw.ImageDraw) -> None:
        """Row numbers, class labels and slot numbers."""
        number_end, _ = self._label_ends
        name_start, above = number_end + _BETWEEN_COLUMNS, MARGIN + LINE // 2 - GAP
        draw.text((number_end, above), _HEADINGS[0], FAINT, font(), "rm")
        draw.text((name_start, above), _HEADINGS[1], FAINT, font(), "lm")
        for slot, heading in self.headings().items():
            across = self.tile(0, slot)[1]
            draw.text(((across.start + across.stop) // 2, above), heading, FAINT, font(), "mm")
        for place, (row, name) in enumerate(self.labels_r):
            down = self.tile(place, 0)[0]
            middle = (down.start + down.stop) // 2
            draw.text((number_end, middle), str(row), FAINT, font(), "rm")
            draw.text((name_start, middle), name, INK, font(), "lm")


def montage(views_rkhw3: np.ndarray, layout: Layout) -> np.ndarray:
    """The picture, (y, x, 3) uint8, of views (r, k, h, w, 3) uint8, laid out as `layout` says."""
    picture = Image.new("RGB", layout.size[::-1], PAPER)
    layout.write(ImageDraw.Draw(picture))
    picture_yx3 = np.array(picture)
    for row, views_khw3 in enumerate(views_rkhw3):
        for slot, view_hw3 in enumerate(views_khw3):
            paste(picture_yx3, view_hw3, layout.tile(row, slot), layout.scale)
    return picture_yx3


def paste(
    picture_yx3: np.ndarray,
    image_hw3: np.ndarray,
    tile: tuple[slice, slice],
    scale: int,
    frame: tuple[int, int, int] = FRAME,
    thick: int = 1,
) -> None:
    """Writes an image into the picture's `tile`, each pixel a square of `scale`, with a frame around it."""
    down, across = tile
    picture_yx3[down.start - thick : down.stop + thick, across.start - thick : across.stop + thick] = frame
    picture_yx3[down, across] = image_hw3.repeat(scale, 0).repeat(scale, 1)
