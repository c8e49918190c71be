"""Families of views: what the integers mean.

`pad-crop` shifts the image by up to `padding` pixels each way, filling with black: (2p + 1)² views. `pad-crop-flip`
has each of them mirrored too. View 0 is the image itself. The view with shift number s and mirror m is s + m·(2p + 1)².
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.core.errors import UsageError, unknown_name

_MOST_VIEWS = np.iinfo(np.int16).max + 1  # plans and schedules hold views and slots as int16


@dataclass(frozen=True)
class PadCrop:
    padding: int
    flips: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise UsageError(f"padding must be at least 0, got {self.padding}")
        if self.size > _MOST_VIEWS:
            raise UsageError(f"padding {self.padding} makes {self.size:,} views, the most is {_MOST_VIEWS:,}")

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


FAMILIES = {
    "pad-crop": lambda padding: PadCrop(padding, flips=False),
    "pad-crop-flip": lambda padding: PadCrop(padding, flips=True),
}


def family_named(name: str, padding: int) -> PadCrop:
    """Raises UsageError for a name that is not in FAMILIES."""
    if name not in FAMILIES:
        raise unknown_name("view family", name, list(FAMILIES))
    return FAMILIES[name](padding)
