"""Packed data: a folder with train.beton, test.beton and data.json, which says what they hold.

Shapes: n rows, h and w height and width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.records import record_of
from toolkit.formats.beton import Beton, open_beton
from toolkit.views.plan import Plan

SPLITS = ("train", "test")


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

    @property
    def key(self) -> str:
        """The folder's name: the data set, and the limit where there is one."""
        return data_key(self.dataset, self.limit)

    @property
    def plan(self) -> Plan:
        padding = self.padding if self.least_area is None else None
        return Plan(self.family, self.height, self.width, padding, least_area=self.least_area)

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

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


def pack_command(key: str) -> str:
    """The command that makes the packed data in the folder `key` again; see `data_key`."""
    dataset, _, limit = key.partition("-limit-")
    return f"kdtool pack --dataset {dataset}{limit and f' --limit {limit}'} --force"


def cache_command(record: DataRecord, teacher: str) -> str:
    """The command that makes the cache of `teacher` on these data again."""
    limit = "" if record.limit is None else f" --limit {record.limit}"
    return f"kdtool cache-teacher --dataset {record.dataset}{limit} --teacher {teacher} --force"


@dataclass(frozen=True)
class PackedData:
    folder: Path
    record: DataRecord

    def split(self, name: str) -> Beton:
        """`train` or `test`, its tables checked. Raises FailureError when the file is missing, damaged or another."""
        record, made_by = self.record, pack_command(self.record.key)
        beton = open_beton(self.folder / f"{name}.beton", made_by)
        expected = {"train": record.train_rows, "test": record.test_rows}[name]
        if len(beton) != expected:
            raise FailureError(f"{beton.path}: holds {len(beton)} rows, data.json says {expected}. Run: {made_by}")
        check_images(beton, record, made_by)
        return beton


def open_packed(folder: Path) -> PackedData:
    """Raises FailureError where `folder` holds no packed data."""
    path, made_by = folder / "data.json", pack_command(folder.name)
    return PackedData(folder, DataRecord.from_record(read_json(path, made_by), path, made_by))


def write_record(folder: Path, record: DataRecord) -> None:
    write_json(folder / "data.json", record.to_record())
