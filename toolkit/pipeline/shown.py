"""What teacher and student are shown, for code of one's own: `toolkit.slot_images`, `row_labels` and `test_batches`.

Shapes: b batch, h and w height and width of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import SPLITS, DataRecord, open_packed

if TYPE_CHECKING:
    from torch import Tensor

_HELD_ROWS = 8192  # whose views are worked out at a time


class _Images(NamedTuple):
    """Rows of a packed file, at these positions."""

    beton: Beton
    positions_n: np.ndarray
    data: DataRecord


def slot_images(
    folder: str | Path, slot: int, split: str = "train", batch_size: int = 256
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pixels of slot `slot` of every row, as kdtool shows them to teacher and student, in row order: what the
    logits of `kdtool import-logits` must be of.

    `folder` is of packed data (kdtool-work/data/<data set>) or of a subset. Yields (images (b, h, w, 3) uint8, row
    numbers in the packed data (b,) int64), `batch_size` rows or fewer. Slot 0 is the canonical view, in which alone the
    test split is shown; of a subset that is <workspace>/data/<data set>'s. Raises UsageError or FailureError.
    """
    import torch

    from toolkit.formats.views_of import ViewReader

    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}")
    images = _images(Path(folder), split)
    plan = images.data.plan
    known = plan.size if split == "train" else 1
    if not isinstance(slot, (int, np.integer)) or not 0 <= slot < known:
        raise UsageError(
            f"slot must be a whole number from 0 to {known - 1} of the {split} split of {images.data.key}, got {slot}"
        )
    reader = ViewReader(images.beton, plan, batch_size, torch.device("cpu"))
    for start in range(0, len(images.positions_n), _HELD_ROWS):
        at_n, done = images.positions_n[start : start + _HELD_ROWS], 0
        for images_bhwc in reader.slot(at_n, slot):
            at_b = at_n[done : done + len(images_bhwc)]
            done += len(images_bhwc)
            yield images_bhwc.numpy(), images.beton.rows_n[at_b].astype(np.int64)


def row_labels(folder: str | Path, split: str = "train") -> np.ndarray:
    """The label of every row, in the order of `slot_images`: (n,) int64. Raises UsageError or FailureError."""
    images = _images(Path(folder), split)
    return images.beton.labels_n[images.positions_n].astype(np.int64)


def test_batches(folder: str | Path, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
    """The packed test split, to evaluate a student on: (images (b, 3, h, w) float32, normalised as by `subset_loader`,
    labels (b,) int64).

    `folder` is of a subset or of packed data, as in `slot_images`. Raises UsageError or FailureError.
    """
    import torch

    from toolkit.views.render import normalise

    images = _images(Path(folder), "test")
    mean_c, std_c = (torch.tensor(values, dtype=torch.float32) for values in (images.data.mean, images.data.std))
    labels_n, done = row_labels(folder, "test"), 0
    for images_bhwc, rows_b in slot_images(folder, 0, "test", batch_size):
        labels_b = labels_n[done : done + len(rows_b)]
        done += len(rows_b)
        yield normalise(torch.from_numpy(images_bhwc), mean_c, std_c), torch.from_numpy(labels_b)


def _images(folder: Path, split: str) -> _Images:
    if split not in SPLITS:
        raise UsageError(f"split must be {' or '.join(SPLITS)}, got '{split}'")
    if not folder.is_dir():
        raise FailureError(f"{folder}: no folder. Name one of packed data (kdtool-work/data/…) or of a subset")
    if not (folder / "subset.json").is_file():
        packed = open_packed(folder)
        beton = packed.split(split)
        return _Images(beton, np.arange(len(beton)), packed.record)
    bundle = open_bundle(folder)
    if split == "train":
        return _Images(bundle.images(), bundle.indices_m, bundle.data)
    packed = open_packed(folder.resolve().parent.parent / "data" / bundle.data.key)
    beton = packed.test_split_of(bundle.data)
    return _Images(beton, np.arange(len(beton)), bundle.data)
