"""What a data set is before it is packed: the arrays of each split, and which views of them keep their meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Images(Protocol):
    """`images[row]` is (h, w, 3) uint8, as of an array (n, h, w, 3)."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any) -> np.ndarray: ...


Arrays = tuple[Images, np.ndarray]


@dataclass(frozen=True)
class Source:
    """`load(split, data_dir)` gives the arrays of `train` or `test`. `mean` and `std` are of 0 … 1 pixel values.

    A source of resized crops names the network's `size` (the images' own may be any) and their `least_area` in percent.
    """

    load: Callable[[str, Path | None], Arrays]
    class_names: tuple[str, ...]
    family: str
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None = None
    least_area: int | None = None


def as_rgb(images: np.ndarray) -> np.ndarray:
    """(n, h, w) or (n, h, w, 3) uint8 to (n, h, w, 3)."""
    return np.repeat(images[..., None], 3, axis=3) if images.ndim == 3 else images
