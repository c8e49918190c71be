"""A subset bundle: a folder that trains a student anywhere, without the cache, the teacher or the full data.

    subset.json            how the rows were chosen, from what, and the packed data's own record
    loader.json            what an FFCV Loader needs: file, indices, order, seed, drop_last; and the rows' numbers
    images.beton           the rows' pixels and labels (absent when only indexed)
    targets/<teacher>.h5   the teacher's logits for these rows, in this order

Shapes: m rows of the subset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, write_json
from toolkit.core.hashing import fingerprint
from toolkit.formats.beton import Beton, open_beton
from toolkit.formats.dataset import DataRecord

_MADE_BY = "kdtool build-subset --force"


@dataclass(frozen=True)
class SubsetRecord:
    """What subset.json says. `scored_by` names score and teacher where a score chose the rows."""

    name: str
    method: str
    fraction: float
    balance: bool
    seed: int
    scored_by: str | None
    index_only: bool
    rows: int
    class_counts: dict[str, int]
    rows_fingerprint: str
    bytes: int
    data: dict[str, Any]
    command: str
    created: str
    versions: dict[str, str]

    def settings(self) -> dict[str, Any]:
        """What decides the rows and the files; the same settings give the same bundle."""
        names = ("method", "fraction", "balance", "seed", "scored_by", "index_only", "rows_fingerprint")
        return {**{name: getattr(self, name) for name in names}, "data": self.data["train_fingerprint"]}


def rows_fingerprint(rows_m: np.ndarray) -> str:
    return fingerprint(np.ascontiguousarray(rows_m, dtype="<i8"))


@dataclass(frozen=True)
class Bundle:
    folder: Path
    record: SubsetRecord
    data: DataRecord

    @cached_property
    def _loader(self) -> dict[str, Any]:
        return read_json(self.folder / "loader.json", _MADE_BY)

    @cached_property
    def rows_m(self) -> np.ndarray:
        """The rows' numbers in the packed data, increasing. Raises FailureError when they are not those recorded."""
        rows_m = np.asarray(self._loader.get("rows", []), dtype=np.int64)
        if rows_fingerprint(rows_m) != self.record.rows_fingerprint:
            raise FailureError(f"{self.folder / 'loader.json'}: its rows are not those of subset.json. Run: {_MADE_BY}")
        return rows_m

    @property
    def indices_m(self) -> np.ndarray:
        """The rows' positions in the image file, increasing."""
        return np.asarray(self._loader["indices"], dtype=np.int64)

    @property
    def images_path(self) -> Path:
        return self.folder / self._loader["file"]

    def images(self) -> Beton:
        """The image file, checked to hold the subset's rows. Raises FailureError when it does not."""
        beton = open_beton(self.images_path, _MADE_BY)
        if len(self.indices_m) and self.indices_m[-1] >= len(beton):
            raise FailureError(f"{beton.path}: holds {len(beton)} rows, too few for this subset. Run: {_MADE_BY}")
        if not np.array_equal(beton.rows_n[self.indices_m], self.rows_m):
            raise FailureError(f"{beton.path}: its rows are not those of subset.json. Run: {_MADE_BY}")
        return beton

    def targets_path(self, teacher: str) -> Path:
        return self.folder / "targets" / f"{teacher}.h5"

    def teachers(self) -> list[str]:
        """The teachers whose targets the bundle holds."""
        return sorted(path.stem for path in self.folder.glob("targets/*.h5"))

    def rows_of(self, data: DataRecord) -> np.ndarray:
        """The rows, for use with packed data. Raises FailureError unless the subset was cut from those very data."""
        if data.train_fingerprint != self.data.train_fingerprint:
            raise FailureError(
                f"{self.folder}: cut from {self.data.key} ({self.data.train_fingerprint}), but the data are {data.key} "
                f"({data.train_fingerprint}). Run kdtool build-subset on these data"
            )
        return self.rows_m


def open_bundle(folder: Path) -> Bundle:
    """Raises FailureError where `folder` holds no subset of this version."""
    path = folder / "subset.json"
    record = read_json(path, "kdtool build-subset --frac 0.5")
    try:
        subset = SubsetRecord(**record)
    except TypeError as error:
        raise FailureError(f"{path}: not a subset of this version ({error}). Run: {_MADE_BY}") from error
    return Bundle(folder, subset, DataRecord.from_record(subset.data, path))


def write_bundle_records(
    folder: Path, record: SubsetRecord, file: str, indices_m: np.ndarray, rows_m: np.ndarray
) -> None:
    loader = {
        "file": file,
        "order": "RANDOM",
        "seed": record.seed,
        "drop_last": False,
        "fields": ["image", "label", "row"],
        "indices": indices_m.tolist(),
        "rows": rows_m.tolist(),
    }
    write_json(folder / "loader.json", loader, compact_lists=True)
    write_json(folder / "subset.json", asdict(record))
