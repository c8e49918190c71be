"""Label noise of a known share: packed data with some of the training labels flipped, and which ones kept.

Shapes: n rows of the training split, m of them with a flipped label.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.core.errors import UsageError
from toolkit.core.hashing import checked_seed, rng_for
from toolkit.formats.beton import relabelled
from toolkit.formats.dataset import DataRecord, Noise, PackedData, noise_name, noise_named, write_noise

_SALT = 0xF11B


def check_noise(dataset: str, rate: float, seed: int) -> None:
    """Raises UsageError for a rate outside (0, 1) or of too many digits for a name, a bad seed, or noise of noise."""
    if not (math.isfinite(rate) and 0 < rate < 1):
        raise UsageError(f"--rate must be above 0 and below 1, got {rate:g}")
    if float(f"{rate:g}") != rate:
        raise UsageError(f"--rate must have at most six digits, as it names the data set, got {rate}")
    checked_seed(seed)
    if noise_named(dataset) is not None:
        raise UsageError(f"--dataset {dataset} has label noise already. Name the data set that it was made of")


def flipped(labels_n: np.ndarray, classes: int, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows_m, labels_m): exactly round(rate · n) rows, chosen uniformly, increasing, and a new label for each, chosen
    uniformly among the other classes: symmetric noise without the true label. Both int64.

    Raises ValueError for fewer than two classes, or a rate that flips no label.
    """
    if classes < 2:
        raise ValueError(f"labels of {classes} class can't be flipped: there is no other")
    count = round(rate * len(labels_n))
    if count < 1:
        raise ValueError(f"--rate {rate:g} flips none of {len(labels_n)} labels. Use {1 / len(labels_n):.2g} or more")
    rows_m = np.sort(rng.choice(len(labels_n), count, replace=False))
    steps_m = rng.integers(1, classes, size=count)  # round the classes, never all the way
    return rows_m, (labels_n[rows_m] + steps_m) % classes


def noise_in(base: PackedData, rate: float, seed: int) -> Noise:
    """Which of the base's training labels are flipped, and their true ones. Raises UsageError where that can't be."""
    labels_n = base.split("train").labels_n
    try:
        rows_m, _ = flipped(labels_n, base.record.classes, rate, rng_for(seed, _SALT))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Noise(base.record.dataset, rate, seed, rows_m, labels_n[rows_m])


def with_noise(base: PackedData, noise: Noise, folder: Path) -> DataRecord:
    """Writes `base` with the labels of `noise` flipped into `folder`, and noise.json, and returns the record, which is
    not yet written. Everything else is the base's, byte for byte.

    Raises FailureError where the base is damaged or the disk full.
    """
    train, test, record = base.split("train"), base.split("test"), base.record
    labels_n = train.labels_n.copy()
    _, labels_n[noise.rows_m] = flipped(labels_n, record.classes, noise.rate, rng_for(noise.seed, _SALT))
    fingerprint = relabelled(train, labels_n, folder / "train.beton")
    test_fingerprint = relabelled(test, test.labels_n, folder / "test.beton")
    write_noise(folder, noise)
    return replace(
        record,
        dataset=noise_name(record.dataset, noise.rate, noise.seed),
        train_fingerprint=fingerprint,
        test_fingerprint=test_fingerprint,
        source=record.key,
    )
