"""Packed data: a folder with train.beton, test.beton and data.json, which says what they hold.

Shapes: n rows, h and w height and width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.formats.beton import Beton, open_beton
from toolkit.views.plan import Plan

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DataRecord:
    """What data.json says. `mean` and `std` are per channel, in units of 0 … 1 pixel values."""

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

    @property
    def key(self) -> str:
        """The folder's name: the data set, and the limit where there is one."""
        return data_key(self.dataset, self.limit)

    @property
    def plan(self) -> Plan:
        return Plan(self.family, self.height, self.width, self.padding)

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any], source: Path) -> DataRecord:
        try:
            return cls(**record)
        except TypeError as error:
            raise FailureError(
                f"{source}: not a data record of this version ({error}). Run: kdtool pack --force"
            ) from error


def data_key(dataset: str, limit: int | None) -> str:
    return dataset if limit is None else f"{dataset}-limit-{limit}"


@dataclass(frozen=True)
class PackedData:
    folder: Path
    record: DataRecord

    def split(self, name: str) -> Beton:
        """`train` or `test`, its tables checked. Raises FailureError when the file is missing, damaged or another."""
        record = self.record
        limit = "" if record.limit is None else f" --limit {record.limit}"
        made_by = f"kdtool pack --dataset {record.dataset}{limit} --force"
        beton = open_beton(self.folder / f"{name}.beton", made_by)
        expected = {"train": record.train_rows, "test": record.test_rows}[name]
        if len(beton) != expected:
            raise FailureError(f"{beton.path}: holds {len(beton)} rows, data.json says {expected}. Run: {made_by}")
        return beton


def open_packed(folder: Path) -> PackedData:
    """Raises FailureError where `folder` holds no packed data."""
    path = folder / "data.json"
    return PackedData(folder, DataRecord.from_record(read_json(path, "kdtool pack"), path))


def write_record(folder: Path, record: DataRecord) -> None:
    write_json(folder / "data.json", record.to_record())
