"""Packing some rows into a temporary folder: what all of them would take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.core.progress import Progress, Tick
from toolkit.data.folder_pack import write_part
from toolkit.data.folder_plan import FolderPlan
from toolkit.data.pack import loaded, write_split
from toolkit.formats.beton import open_beton

_ROWS, _BYTES, _PICTURES = 4096, 1 << 27, 256  # tried at most


class PackTrial(NamedTuple):
    """`rows` are all, of both splits; `read_s` is what reading the source took."""

    rows: dict[str, int]
    tried: int
    bytes_per_row: float
    rows_per_s: float
    read_s: float


def try_arrays(
    dataset: str, folder: Path, data_dir: Path | None, limit: int | None, workers: int, progress: Progress
) -> PackTrial:
    """Of a data set by name, or one's own, which is read whole. Raises UsageError or FailureError."""
    start_s = time.perf_counter()
    source, arrays = loaded(dataset, folder, data_dir, limit, progress)
    read_s = time.perf_counter() - start_s
    images, labels_n = arrays["train"]
    tried = min(len(labels_n), _ROWS, max(1, _BYTES // max(1, images[0].nbytes)))
    watch = _Watch()
    rows_m = np.arange(tried)
    some = images[rows_m], labels_n[rows_m]
    write_split(some, folder / "trial.beton", len(source.class_names), workers, watch.progress)
    rows = {split: len(labels) for split, (_, labels) in arrays.items()}
    return PackTrial(rows, tried, _bytes_per_row(folder / "trial.beton"), watch.rate(), read_s)


def try_folder(plan: FolderPlan, folder: Path, workers: int) -> PackTrial:
    """Of an image folder: files from all over its training split."""
    of, watch = plan.splits["train"], _Watch()
    rows_m = of.rows_m[np.unique(np.linspace(0, len(of.rows_m) - 1, _PICTURES).astype(np.int64))]
    write_part(folder / "trial.beton", of, rows_m, plan.settings, workers, watch.progress)
    rows = {split: len(one.rows_m) for split, one in plan.splits.items()}
    return PackTrial(rows, len(rows_m), _bytes_per_row(folder / "trial.beton"), watch.rate(), 0.0)


def _bytes_per_row(path: Path) -> float:
    """Of pixels or of a JPEG, without the tables and the pages' ends."""
    return float(open_beton(path).bytes_n.mean())


class _Watch:
    """How fast rows come, once the first are there: starting the writers is done once."""

    def __init__(self) -> None:
        self._at = [(time.perf_counter(), 0)]

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Tick]:
        def tick(n: int) -> None:
            if n:
                self._at.append((time.perf_counter(), self._at[-1][1] + n))

        yield tick

    def rate(self) -> float:
        (begun_s, before), (ended_s, rows) = self._at[min(1, len(self._at) - 2)], self._at[-1]
        if rows == before:  # all came at once
            (begun_s, before) = self._at[0]
        return (rows - before) / max(ended_s - begun_s, 1e-3)
