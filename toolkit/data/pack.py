"""Packing: a source is decoded once, and everything after reads the packed pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.imported import checked_reference, is_reference
from toolkit.core.places import place_in_class
from toolkit.core.progress import Progress, silent
from toolkit.data.arrays import Arrays, Images, Source
from toolkit.data.sources import source_named
from toolkit.formats.beton import open_beton
from toolkit.formats.dataset import SPLITS, DataRecord, data_key, is_image_folder, without_noise


class _Samples:
    def __init__(self, images: Images, labels_n: np.ndarray) -> None:
        self.images, self.labels_n = images, labels_n

    def __len__(self) -> int:
        return len(self.labels_n)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.images[row], int(self.labels_n[row])


def first_of_each_class(labels_n: np.ndarray, count: int) -> np.ndarray:
    """Positions of the first rows of each class in turn: every class's first, then every class's second, …"""
    return np.lexsort((labels_n, place_in_class(labels_n)))[:count]


def balanced_head(labels_n: np.ndarray, limit: int) -> np.ndarray:
    """The first `limit` rows when classes take turns, in row order: (limit,) int64. All rows where there are fewer."""
    return np.sort(first_of_each_class(labels_n, limit))


def _limited(arrays: Arrays, limit: int | None) -> Arrays:
    images, labels_n = arrays
    if limit is None:
        return arrays
    rows = balanced_head(labels_n, limit)
    return images[rows], labels_n[rows]


def check_limit(dataset: str, limit: int | None) -> None:
    """Raises UsageError for an unknown data set, or a limit that would leave a class empty; of one's own and of image
    folders, whose classes are known once they are read, for less than one row."""
    base = without_noise(dataset)
    if is_reference(base):
        checked_reference(base, "--dataset")
        refuse_limit(limit, 1)
    elif is_image_folder(base):
        refuse_limit(limit, 1)
    else:
        refuse_limit(limit, len(source_named(base).class_names))


def refuse_limit(limit: int | None, classes: int) -> None:
    """Raises UsageError for a limit that leaves a class empty."""
    if limit is not None and limit < classes:
        raise UsageError(f"--limit must be at least the number of classes ({classes}), got {limit}")


def loaded(
    dataset: str, folder: Path, data_dir: Path | None, limit: int | None, progress: Progress
) -> tuple[Source, dict[str, Arrays]]:
    """What is known of the data set, and the arrays of each split; one's own are read into a file in `folder`.

    Raises UsageError for a bad name or limit, FailureError where the source can't be found.
    """
    check_limit(dataset, limit)
    source = source_named(dataset, progress, folder)
    refuse_limit(limit, len(source.class_names))
    return source, {split: _limited(source.load(split, data_dir), limit) for split in SPLITS}


def write_split(arrays: Arrays, path: Path, classes: int, workers: int, progress: Progress) -> None:
    """Raises FailureError naming a bad sample."""
    from toolkit.formats.beton_writer import write_beton

    write_beton(_Samples(*arrays), path, classes, workers, progress)


def pack(
    dataset: str, folder: Path, data_dir: Path | None, limit: int | None, workers: int = 2, progress: Progress = silent
) -> DataRecord:
    """Writes train.beton and test.beton of `dataset` into `folder` and returns their record, which is not yet written.

    `limit` keeps that many rows of each split, class-balanced. Raises UsageError for a bad name or limit, FailureError
    when the source can't be found or a sample is bad.
    """
    source, arrays = loaded(dataset, folder, data_dir, limit, progress)
    classes = len(source.class_names)
    height, width = source.size or arrays["train"][0][0].shape[:2]
    record = DataRecord(
        dataset=dataset,
        classes=classes,
        class_names=list(source.class_names),
        height=height,
        width=width,
        family=source.family,
        padding=source.padding,
        mean=list(source.mean),
        std=list(source.std),
        train_rows=len(arrays["train"][1]),
        test_rows=len(arrays["test"][1]),
        train_fingerprint="",
        test_fingerprint="",
        limit=limit,
        source=data_key(dataset, limit),
        least_area=source.least_area,
    )
    record.plan  # noqa: B018 - views that can't be are refused before anything is written
    fingerprints = {}
    for split, of_split in arrays.items():
        path = folder / f"{split}.beton"
        try:
            write_split(of_split, path, classes, workers, progress)
        except FailureError as error:
            raise FailureError(f"data set {dataset}, {split} split: {error}") from error
        fingerprints[split] = open_beton(path).content_fingerprint()
    return replace(record, train_fingerprint=fingerprints["train"], test_fingerprint=fingerprints["test"])
