"""Families of views: what the integers mean.

`pad-crop` shifts the image by up to `padding` pixels each way, filling with black: (2p + 1)² views. `pad-crop-flip`
has each of them mirrored too. View 0 is the image itself. The view with shift number s and mirror m is s + m·(2p + 1)².

`resized-crop` cuts a box out of an image of any size and scales it to the plan's; `resized-crop-flip` mirrors every
other view too. View 0 is the middle of the image. The boxes have no end: a row walks round the first 32,768 of its own.

Shapes: n views, of a row and number each; 2 is (height, width); 5 is (top, left, height, width, mirrored).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolkit.core.errors import UsageError, unknown_name
from toolkit.core.hashing import mix

_MOST_VIEWS = np.iinfo(np.int16).max + 1  # plans and schedules hold views and slots as int16


@dataclass(frozen=True)
class PadCrop:
    padding: int
    flips: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UsageError(f"padding must be at least 0, got {self.padding}")
        if self.size > _MOST_VIEWS:
            raise UsageError(f"padding {self.padding} makes {self.size:,} views, and must make at most {_MOST_VIEWS:,}")

    @property
    def shifts(self) -> int:
        return (2 * self.padding + 1) ** 2

    @property
    def mirrors(self) -> int:
        return 2 if self.flips else 1

    @property
    def size(self) -> int:
        return self.shifts * self.mirrors

    def decode(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(dy, dx, mirrored) of each view: shifts in −p … p (int64) and a boolean, in the shape of `views`."""
        views = np.asarray(views, dtype=np.int64)
        side = 2 * self.padding + 1
        # shift number 0 is the middle of the grid, so that view 0 is the image itself
        cell = (views % self.shifts + self.shifts // 2) % self.shifts
        return cell // side - self.padding, cell % side - self.padding, views >= self.shifts


_SALT = 0xB0C5
_ATTEMPTS = 10
# Shapes log-uniform from 3:4 to 4:3, as torchvision draws them, but from a table of integers (units of 1/65,536): no
# logarithm or power whose last digit may differ between machines decides a pixel
_ASPECTS = np.array([round(65536 * (4 / 3) ** (step / 128)) for step in range(-128, 128)], dtype=np.int64)


@dataclass(frozen=True)
class ResizedCrop:
    """Boxes of at least `least_area` percent of the image: torchvision's RandomResizedCrop has 8."""

    least_area: int
    flips: bool

    def __post_init__(self) -> None:
        if not 1 <= self.least_area <= 100:
            raise UsageError(f"--least-area must be 1 to 100 percent, got {self.least_area}")

    @property
    def size(self) -> int:
        return _MOST_VIEWS

    def boxes(self, seed: int, rows_n: np.ndarray, views_n: np.ndarray, sizes_n2: np.ndarray) -> np.ndarray:
        """(n, 5) int32: the boxes of views `views_n` of rows `rows_n`, whose images are of `sizes_n2`.

        Area uniform, shape log-uniform, place uniform; ten attempts, then the largest middle box of an allowed shape.
        View 0 is the middle square of seven eighths of the shorter side.
        """
        rows_n, views_n = np.asarray(rows_n, dtype=np.int64), np.asarray(views_n, dtype=np.int64)
        sizes_n2 = np.asarray(sizes_n2, dtype=np.int64)
        boxes_n4 = _middle(sizes_n2, *_widest(sizes_n2))
        open_n = np.ones(len(rows_n), dtype=bool)
        for attempt in range(_ATTEMPTS):
            at = np.flatnonzero(open_n)
            tried_n4, fits_n = self._attempt(mix(seed, _SALT, rows_n[at], views_n[at], attempt), sizes_n2[at])
            boxes_n4[at[fits_n]] = tried_n4[fits_n]
            open_n[at[fits_n]] = False
        side_n = sizes_n2.min(axis=1) * 7 // 8
        boxes_n4 = np.where(views_n[:, None] == 0, _middle(sizes_n2, side_n, side_n), boxes_n4)
        mirrored_n = views_n % 2 if self.flips else np.zeros_like(views_n)
        return np.column_stack([boxes_n4, mirrored_n]).astype(np.int32)

    def _attempt(self, bits_n: np.ndarray, sizes_n2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(boxes (n, 4), which of them fit) from 64 random bits each: 16 for area, top and left, 8 for the shape."""
        area, top, left, aspect = (
            (bits_n >> np.uint64(shift) & np.uint64(mask)).astype(np.int64)
            for shift, mask in ((0, 0xFFFF), (16, 0xFFFF), (32, 0xFFFF), (48, 0xFF))
        )
        share_n = (self.least_area * 65536 + (100 - self.least_area) * area) / (100 * 65536)
        pixels_n = share_n * sizes_n2[:, 0] * sizes_n2[:, 1]
        width_n = np.rint(np.sqrt(pixels_n * _ASPECTS[aspect] / 65536)).astype(np.int64)  # IEEE rounds a root exactly
        height_n = np.rint(np.sqrt(pixels_n * 65536 / _ASPECTS[aspect])).astype(np.int64)
        room_n2 = sizes_n2 - np.column_stack([height_n, width_n])
        fits_n = (room_n2 >= 0).all(axis=1) & (height_n > 0) & (width_n > 0)
        places_n2 = np.column_stack([top, left]) * (room_n2 + 1) >> 16
        return np.column_stack([places_n2, height_n, width_n]), fits_n


def _widest(sizes_n2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(height, width) of the largest box whose shape lies within 3:4 … 4:3."""
    height_n, width_n = sizes_n2.T
    return np.minimum(height_n, np.maximum(width_n * 4 // 3, 1)), np.minimum(width_n, np.maximum(height_n * 4 // 3, 1))


def middle_squares(sizes_n2: np.ndarray, share: float) -> np.ndarray:
    """(n, 5) int32: of each image the middle square of this share of its shorter side; of 0.875, view 0's box."""
    # a whisper of tolerance: 0.29 of 100 pixels are 29
    side_n = np.floor(np.asarray(sizes_n2, dtype=np.int64).min(axis=1) * share + 1e-9).astype(np.int64)
    unmirrored_n = np.zeros(len(side_n), dtype=np.int64)
    return np.column_stack([_middle(sizes_n2, side_n, side_n), unmirrored_n]).astype(np.int32)


def _middle(sizes_n2: np.ndarray, height_n: np.ndarray, width_n: np.ndarray) -> np.ndarray:
    """(n, 4): boxes of these sizes (of one pixel at least) in the middle of the images."""
    box_n2 = np.maximum(np.column_stack([height_n, width_n]), 1)
    return np.column_stack([(sizes_n2 - box_n2) // 2, box_n2])


FAMILIES: dict[str, Callable[[int | None, int | None], PadCrop | ResizedCrop]] = {
    "pad-crop": lambda padding, least_area: PadCrop(_given(padding, "padding"), flips=False),
    "pad-crop-flip": lambda padding, least_area: PadCrop(_given(padding, "padding"), flips=True),
    "resized-crop": lambda padding, least_area: ResizedCrop(_given(least_area, "least area"), flips=False),
    "resized-crop-flip": lambda padding, least_area: ResizedCrop(_given(least_area, "least area"), flips=True),
}


def _given(value: int | None, name: str) -> int:
    if value is None:
        raise UsageError(f"a family of views needs its {name}")
    return value


def family_named(name: str, padding: int | None = None, least_area: int | None = None) -> PadCrop | ResizedCrop:
    """Raises UsageError for a name that is not in FAMILIES, or a geometry it lacks."""
    if name not in FAMILIES:
        raise unknown_name("view family", name, list(FAMILIES))
    return FAMILIES[name](padding, least_area)
