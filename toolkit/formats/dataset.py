"""Packed data: a folder with train.beton, test.beton and data.json, which says what they hold.

Data with label noise are a data set of their own, named after the one they were made of; which labels were flipped lies
beside them, in noise.json.

Shapes: n rows, m rows with a flipped label, h and w height and width.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.folder_settings import FolderSettings, option
from toolkit.core.records import record_of
from toolkit.formats.beton import Beton, open_beton
from toolkit.views.plan import Plan

SPLITS = ("train", "test")
NOISE_FILE = "noise.json"

_OF_FOLDERS = ("listing", "max_resolution", "write_mode", "jpeg_quality", "skipped")
_FOLDERS = re.compile(r"imagenet|imagefolder(-[a-z0-9-]+)?", re.ASCII)
_NOISY = re.compile(r"(?P<of>.+)-noise-(?P<rate>[0-9.e-]+)-s(?P<seed>[0-9]+)", re.ASCII)


@dataclass(frozen=True)
class DataRecord:
    """What data.json says. `mean` and `std` are per channel, in units of 0 … 1 pixel values.

    `height` and `width` are the network's input: the frames' own size, or where `least_area` is given (percent) what
    crops of frames of any size are scaled to.
    """

    dataset: str
    classes: int
    class_names: list[str]
    height: int
    width: int
    family: str
    padding: int
    mean: list[float]
    std: list[float]
    train_rows: int
    test_rows: int
    train_fingerprint: str
    test_fingerprint: str
    limit: int | None
    source: str
    least_area: int | None = None
    # of an image folder: a fingerprint of its files' names and sizes, how they were packed, and how many could not be
    listing: str | None = None
    max_resolution: int | None = None
    write_mode: str | None = None
    jpeg_quality: int | None = None
    skipped: int = 0

    @property
    def key(self) -> str:
        """The folder's name: the data set, and the limit where there is one."""
        return data_key(self.dataset, self.limit)

    @property
    def plan(self) -> Plan:
        padding = self.padding if self.least_area is None else None
        return Plan(self.family, self.height, self.width, padding, least_area=self.least_area)

    def to_record(self) -> dict[str, Any]:
        """Its fields; those of an image folder only where it is one."""
        return {name: value for name, value in asdict(self).items() if self.listing or name not in _OF_FOLDERS}

    @classmethod
    def from_record(cls, record: dict[str, Any], source: Path, made_by: str) -> DataRecord:
        """Raises FailureError, naming `source`, when the record is not one of this version or contradicts itself."""
        try:
            data = record_of(cls, record)
            data.plan  # noqa: B018 - an unknown family is refused here
            counts = (data.classes, data.height, data.width, data.train_rows, data.test_rows)
            channels = (len(data.mean), len(data.std))
            if min(counts) < 1 or len(data.class_names) != data.classes or channels != (3, 3) or min(data.std) <= 0:
                raise ValueError("its numbers can't be")
        except ValueError as error:
            raise FailureError(f"{source}: not a data record of this version ({error}). Run: {made_by}") from error
        return data


def data_key(dataset: str, limit: int | None) -> str:
    return dataset if limit is None else f"{dataset}-limit-{limit}"


def is_image_folder(dataset: str) -> bool:
    """Whether a data set is packed from a folder of images: imagefolder, imagefolder-<name> or imagenet."""
    named = _FOLDERS.fullmatch(dataset) is not None
    return named and not any(word in f"{dataset}-" for word in ("-limit-", "-noise-"))  # kdtool's own additions


def noise_name(dataset: str, rate: float, seed: int) -> str:
    """The name of `dataset` with a share `rate` of its training labels flipped."""
    return f"{dataset}-noise-{rate:g}-s{seed}"


def noise_named(dataset: str) -> tuple[str, float, int] | None:
    """The data set, rate and seed that `noise_name` made the name of, or None where it made no such name."""
    found = _NOISY.fullmatch(dataset)
    if found is None:
        return None
    try:
        parts = found["of"], float(found["rate"]), int(found["seed"])
    except ValueError:  # such as 0.1.2
        return None
    return parts if 0 < parts[1] < 1 and noise_name(*parts) == dataset else None


def check_images(beton: Beton, record: DataRecord, made_by: str) -> None:
    """Raises FailureError unless every label is one of the record's classes and, for pad-crops, every image has its
    size."""
    images, labels_n = beton.records_n["image"], beton.labels_n
    other_size_n = (images["height"] != record.height) | (images["width"] != record.width)
    if record.plan.finite and np.any(other_size_n):
        raise FailureError(
            f"{beton.path}: its images are not all of {record.height} × {record.width} pixels. Run: {made_by}"
        )
    if len(beton) and not (labels_n.min() >= 0 and labels_n.max() < record.classes):
        raise FailureError(f"{beton.path}: its labels are not all from 0 to {record.classes - 1}. Run: {made_by}")


def recorded_settings(record: DataRecord) -> dict[str, Any]:
    """FolderSettings.recorded, of an image folder that is packed."""
    return {name: getattr(record, "height" if name == "size" else name) for name in FolderSettings().recorded}


def without_noise(dataset: str) -> str:
    """The data set that one with label noise is made of; any other is its own."""
    noisy = noise_named(dataset)
    return dataset if noisy is None else noisy[0]


def pack_command(key: str, record: DataRecord | None = None) -> str:
    """The command that makes the packed data in the folder `key` again; see `data_key`. Their `record`, where it is
    known, tells with which options an image folder was packed."""
    dataset, _, limit = key.partition("-limit-")
    command, noisy = f"pack --dataset {dataset}", noise_named(dataset)
    if noisy is not None:
        of, rate, seed = noisy
        command = f"noise --dataset {of} --rate {rate:g} --seed {seed}"
    elif is_image_folder(dataset):
        command += " --data-dir D"
        if record is not None and is_image_folder(record.dataset):
            usual, skip = FolderSettings().recorded, " --on-bad skip" if record.skipped else ""
            found = recorded_settings(record).items()
            command += "".join(f" {option(name)} {value}" for name, value in found if value not in (None, usual[name]))
            command += skip
    return f"kdtool {command}{limit and f' --limit {limit}'} --force"


def cache_command(record: DataRecord, teacher: str) -> str:
    """The command that makes the cache of `teacher` on these data again."""
    limit = "" if record.limit is None else f" --limit {record.limit}"
    return f"kdtool cache-teacher --dataset {record.dataset}{limit} --teacher {quote(teacher)} --force"


@dataclass(frozen=True)
class PackedData:
    folder: Path
    record: DataRecord

    def split(self, name: str) -> Beton:
        """`train` or `test`, its tables checked. Raises FailureError when the file is missing, damaged or another."""
        record, made_by = self.record, pack_command(self.record.key, self.record)
        beton = open_beton(self.folder / f"{name}.beton", made_by)
        expected = {"train": record.train_rows, "test": record.test_rows}[name]
        if len(beton) != expected:
            raise FailureError(f"{beton.path}: holds {len(beton)} rows, data.json says {expected}. Run: {made_by}")
        check_images(beton, record, made_by)
        return beton

    def test_split_of(self, known: DataRecord) -> Beton:
        """The test split, for a subset whose data are `known`. Raises FailureError when it is not the one it knows."""
        if self.record.test_fingerprint != known.test_fingerprint:
            raise FailureError(
                f"{self.folder}: its test split ({self.record.test_fingerprint}) is not the one the subset knows "
                f"({known.test_fingerprint}). Run: {pack_command(known.key, known)}"
            )
        return self.split("test")


def open_packed(folder: Path) -> PackedData:
    """Raises FailureError where `folder` holds no packed data."""
    path, made_by = folder / "data.json", pack_command(folder.name)
    return PackedData(folder, DataRecord.from_record(read_json(path, made_by), path, made_by))


def write_record(folder: Path, record: DataRecord) -> None:
    write_json(folder / "data.json", record.to_record())


@dataclass(frozen=True)
class Noise:
    """Of which data set how large a share of the training labels was flipped: those of `rows_m`, positions in
    train.beton, increasing, whose labels were `true_labels_m`; both (m,) int64."""

    of: str
    rate: float
    seed: int
    rows_m: np.ndarray
    true_labels_m: np.ndarray


@dataclass(frozen=True)
class _NoiseFile:
    of: str
    rate: float
    seed: int
    rows: list[int]
    labels: list[int]


def write_noise(folder: Path, noise: Noise) -> None:
    rows, labels = noise.rows_m.tolist(), noise.true_labels_m.tolist()
    content = _NoiseFile(noise.of, noise.rate, noise.seed, rows, labels)
    write_json(folder / NOISE_FILE, asdict(content), compact_lists=True)


def noise_of(folder: Path) -> Noise | None:
    """Which labels of the packed data in `folder` were flipped, or None where they are no data with label noise.

    Raises FailureError where noise.json is missing, damaged, or contradicts data.json or train.beton.
    """
    data = open_packed(folder)
    if noise_named(data.record.dataset) is None:
        return None
    path, made_by = folder / NOISE_FILE, pack_command(data.record.key)
    try:
        noise = _checked_noise(read_json(path, made_by), data)
    except (ValueError, OverflowError) as error:
        raise FailureError(f"{path}: not the label noise of these data ({error}). Run: {made_by}") from error
    return noise


def _checked_noise(content: dict[str, Any], data: PackedData) -> Noise:
    """Raises ValueError or OverflowError, saying what is wrong."""
    found, record = record_of(_NoiseFile, content), data.record
    rows_m, labels_m = (np.array(values, dtype=np.int64) for values in (found.rows, found.labels))
    if (found.of, found.rate, found.seed) != noise_named(record.dataset):
        raise ValueError(f"it is of {noise_name(found.of, found.rate, found.seed)}")
    expected = round(found.rate * record.train_rows)
    if not expected or len(rows_m) != expected or len(labels_m) != expected:
        raise ValueError(f"{len(rows_m)} rows and {len(labels_m)} labels, expected {expected} of {record.train_rows}")
    if np.any(np.diff(rows_m) <= 0) or rows_m[0] < 0 or rows_m[-1] >= record.train_rows:
        raise ValueError(f"its rows don't increase from 0 to {record.train_rows - 1}")
    if labels_m.min() < 0 or labels_m.max() >= record.classes:
        raise ValueError(f"its labels are not all from 0 to {record.classes - 1}")
    same_m = data.split("train").labels_n[rows_m] == labels_m
    if np.any(same_m):
        raise ValueError(f"row {rows_m[same_m][0]} has its true label in train.beton")
    return Noise(found.of, found.rate, found.seed, rows_m, labels_m)
