"""Images read one after the other, kept in a file without a name until they are packed.

Shapes: n rows, m of them, h and w height and width.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Spilled:
    """Images (h, w, 3) uint8 of any sizes, added in order within the `with` block and read by number after it. The file
    lies in `folder` and is gone with this process; 12 bytes a row are held.

    Raises OSError where the disk has no room.
    """

    def __init__(self, rows: int, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._starts_n, self._widths_n, self._added = np.zeros(rows + 1, dtype=np.int64), np.zeros(rows, np.int32), 0
        self._bytes = np.empty(0, dtype=np.uint8)

    def add(self, image_hw3: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(image_hw3).data)
        self._widths_n[self._added] = image_hw3.shape[1]
        self._starts_n[self._added + 1] = self._starts_n[self._added] + image_hw3.size
        self._added += 1

    def __enter__(self) -> Spilled:
        return self

    def __exit__(self, *error: object) -> None:
        with self._file:
            if error[0] is None:
                self._file.flush()
                self._bytes = np.asarray(np.memmap(self._file, dtype=np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self._widths_n)

    def __getitem__(self, at: Any) -> Any:
        """The image of row `at`, mapped; of several rows what is to be read of them alone."""
        if isinstance(at, np.ndarray):
            return SomeImages(self, at)
        image = self._bytes[self._starts_n[at] : self._starts_n[at + 1]]
        return image.reshape(-1, int(self._widths_n[at]), 3)


class SomeImages:
    """The images at `rows_m`, in that order."""

    def __init__(self, images: Spilled, rows_m: np.ndarray) -> None:
        self._images, self._rows_m = images, rows_m

    def __len__(self) -> int:
        return len(self._rows_m)

    def __getitem__(self, at: int) -> np.ndarray:
        return self._images[int(self._rows_m[at])]
