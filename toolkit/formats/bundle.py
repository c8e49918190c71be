"""A subset bundle: a folder that trains a student anywhere, without the cache, the teacher or the full data.

    subset.json            how the rows were chosen, from what, and the packed data's own record
    loader.json            what an FFCV Loader needs: file, indices, order, seed, drop_last; and the rows' numbers
    images.beton           the rows' pixels and labels (absent when only indexed)
    weights.h5             how much each row counts, in this order (only of methods that say so)
    targets/<teacher>.h5   the teacher's logits for these rows, in this order

Shapes: m rows of the subset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, did_you_mean
from toolkit.core.files import read_json, write_json
from toolkit.core.hashing import fingerprint
from toolkit.core.long_lists import read_long_lists, write_long_lists
from toolkit.core.records import record_of
from toolkit.formats.beton import Beton, open_beton
from toolkit.formats.dataset import DataRecord, check_images
from toolkit.formats.weights import WEIGHTS, read_weights, weights_fingerprint
from toolkit.formats.workspace import IMPORTED_SCORES

_MADE_BY = "kdtool build-subset --force, with its --frac and other settings"
_NAMED = 5  # subsets, where an error lists those that are there
_CHOSEN = ("rows_fingerprint", "weights_fingerprint")  # settings that follow from all others


@dataclass(frozen=True)
class SubsetRecord:
    """What subset.json says. `scored_by` is "<score> of <teacher>" where a score chose; `images_fingerprint` is
    of the image file, the packed training split's own where the subset only points into it.

    `features_of` is the teacher whose features or logits chose the rows, and `features_fingerprint` its own;
    `scores_fingerprint` is of the score's values, `cache_fingerprint` of the features and logits that were looked at.
    `weights_fingerprint` is None where the method gives no weights. `select_s` is how long choosing took, in seconds.
    Fields with a default are missing in subsets of earlier versions."""

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
    images_fingerprint: str
    bytes: int
    data: dict[str, Any]
    command: str
    created: str
    versions: dict[str, str]
    nested: bool = False
    min_per_class: int = 1
    center: float | None = None
    drop_hardest: float | None = None
    features_of: str | None = None
    features_fingerprint: str | None = None
    weights_fingerprint: str | None = None
    select_s: float | None = None
    scores_fingerprint: str | None = None
    cache_fingerprint: str | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the rows and the files; the same settings give the same bundle."""
        names = (
            "method",
            "fraction",
            "balance",
            "nested",
            "min_per_class",
            "center",
            "drop_hardest",
            "seed",
            "scored_by",
            "features_of",
            "index_only",
            "rows_fingerprint",
            "weights_fingerprint",
        )
        return {**{name: getattr(self, name) for name in names}, "data": self.data["train_fingerprint"]}

    def asked(self) -> dict[str, Any]:
        """The settings that are known before the rows are."""
        return {name: value for name, value in self.settings().items() if name not in _CHOSEN}

    def chooses_as(self, other: SubsetRecord) -> bool:
        """Whether both choose by the same settings from the same labels, scores, features and logits: then they choose
        the same rows. Subsets of earlier versions don't tell what a method looked at."""

        def looked_at(record: SubsetRecord) -> tuple[str | None, str | None]:
            return record.scores_fingerprint, record.cache_fingerprint

        return self.asked() == other.asked() and looked_at(self) == looked_at(other)

    @property
    def chosen_by(self) -> str | None:
        """The teacher whose features, logits or score chose the rows, None where none did."""
        _, _, of = (self.scored_by or "").partition(" of ")
        return self.features_of or (of if of != IMPORTED_SCORES else "") or None

    @property
    def made_by(self) -> str:
        """The command that makes the bundle again."""
        return f"{self._command([self.fraction])} --name {self.name} --force"

    def like(self, method: str, teacher: str | None = None, fractions: Sequence[float] = ()) -> str:
        """The command of a subset by another `method`, which may look at `teacher`: of the same data and, without
        `fractions`, of as many rows."""
        other = replace(self, method=method, scored_by=None, features_of=teacher, center=None, drop_hardest=None)
        return other._command(fractions or [self.fraction])

    def _command(self, fractions: Sequence[float]) -> str:
        said = {
            "dataset": self.data.get("dataset"),
            "limit": self.data.get("limit"),
            "frac": " --frac ".join(map(repr, fractions)),
            "method": self.method,
            "score": (self.scored_by or "").partition(" of ")[0] or None,
            "teacher": self.chosen_by,
            "center": self.center,
            "drop-hardest": self.drop_hardest,
            "min-per-class": None if self.min_per_class == 1 else self.min_per_class,
            "seed": self.seed,
        }
        options = [f"--{name} {value}" for name, value in said.items() if value is not None]
        said_so = {"--no-balance": not self.balance, "--nested": self.nested, "--index-only": self.index_only}
        return " ".join(["kdtool build-subset", *options, *(flag for flag, given in said_so.items() if given)])


def rows_fingerprint(rows_m: np.ndarray) -> str:
    return fingerprint(np.ascontiguousarray(rows_m, dtype="<i8"))


@dataclass(frozen=True)
class _LoaderRecord:
    """What loader.json says."""

    file: str
    order: str
    seed: int
    drop_last: bool
    fields: list[str]
    indices: list  # of integers, or empty where they were read as an array
    rows: list


@dataclass(frozen=True)
class Bundle:
    folder: Path
    record: SubsetRecord
    data: DataRecord

    @cached_property
    def _loader(self) -> tuple[_LoaderRecord, dict[str, np.ndarray]]:
        path, made_by = self.folder / "loader.json", self.record.made_by
        try:
            record, arrays = read_long_lists(path, ("indices", "rows"), made_by)
            return record_of(_LoaderRecord, record), arrays
        except ValueError as error:
            raise FailureError(f"{path}: not a loader record of this version ({error}). Run: {made_by}") from error

    def _numbers(self, name: str) -> np.ndarray:
        record, arrays = self._loader
        try:
            return np.asarray(arrays.get(name, getattr(record, name)), dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise FailureError(
                f"{self.folder / 'loader.json'}: {name} are not all integers ({error}). Run: {self.record.made_by}"
            ) from error

    @property
    def rows_m(self) -> np.ndarray:
        """The rows' numbers in the packed data, increasing: (m,) int64, made anew from what is held in half the bytes.

        Raises FailureError when they are not those recorded."""
        rows_m = self._numbers("rows")
        if self._rows_fingerprint != self.record.rows_fingerprint:
            raise FailureError(
                f"{self.folder / 'loader.json'}: its rows are not those of subset.json. Run: {self.record.made_by}"
            )
        return rows_m

    @cached_property
    def _rows_fingerprint(self) -> str:
        return rows_fingerprint(self._numbers("rows"))

    @property
    def indices_m(self) -> np.ndarray:
        """The rows' positions in the image file, increasing."""
        return self._numbers("indices")

    @cached_property
    def weights_m(self) -> np.ndarray | None:
        """How much each row counts, in the order of the rows: (m,) float32, mean 1; None where all count alike.

        Raises FailureError when they are not those that were chosen with the rows."""
        if self.record.weights_fingerprint is None:
            return None
        path, made_by = self.folder / WEIGHTS, self.record.made_by
        weights_m = read_weights(path, self.rows_m, made_by)
        if weights_fingerprint(weights_m) != self.record.weights_fingerprint:
            raise FailureError(f"{path}: its weights are not those of subset.json. Run: {made_by}")
        return weights_m

    @property
    def images_path(self) -> Path:
        return self.folder / self._loader[0].file

    def images(self) -> Beton:
        """The image file, checked to hold the subset's rows. Raises FailureError when it does not."""
        made_by, indices_m = self.record.made_by, self.indices_m
        beton = open_beton(self.images_path, made_by)
        if len(indices_m) and not (indices_m.min() >= 0 and indices_m.max() < len(beton)):
            raise FailureError(f"{beton.path}: holds {len(beton)} rows, too few for this subset. Run: {made_by}")
        if not np.array_equal(beton.rows_n[indices_m], self.rows_m):
            raise FailureError(f"{beton.path}: its rows are not those of subset.json. Run: {made_by}")
        check_images(beton, self.data, made_by)
        return beton

    def targets_path(self, teacher: str) -> Path:
        return self.folder / "targets" / f"{teacher}.h5"

    def targets_command(self, teacher: str) -> str:
        """The command that makes the targets of `teacher` again."""
        return f"kdtool cache-teacher --subset {self.record.name} --teacher {quote(teacher)} --force"

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


def subset_record(folder: Path) -> SubsetRecord:
    """What the bundle in `folder` says of itself; `open_bundle` looks further. Raises FailureError where it is none."""
    path = folder / "subset.json"
    if not path.is_file():
        known = sorted(found.parent.name for found in folder.parent.glob("*/subset.json"))
        there = f" There are {', '.join(known[:_NAMED])}{', …' if len(known) > _NAMED else ''}." if known else ""
        mend = did_you_mean(folder.name, known)
        raise FailureError(f"{path}: not found.{there} {mend}Run: kdtool build-subset --frac 0.5 --name {folder.name}")
    record = read_json(path, "kdtool build-subset --frac 0.5")
    try:
        return record_of(SubsetRecord, record)
    except ValueError as error:
        raise FailureError(f"{path}: not a subset of this version ({error}). Run: {_MADE_BY}") from error


def open_bundle(folder: Path) -> Bundle:
    """Raises FailureError where `folder` holds no subset of this version."""
    path, subset = folder / "subset.json", subset_record(folder)
    made_by = subset.made_by
    bundle = Bundle(folder, subset, DataRecord.from_record(subset.data, path, made_by))
    if len(bundle.rows_m) != subset.rows:
        raise FailureError(f"{path}: says {subset.rows} rows, loader.json {len(bundle.rows_m)}. Run: {made_by}")
    return bundle


def write_bundle_records(
    folder: Path, record: SubsetRecord, file: str, indices_m: np.ndarray, rows_m: np.ndarray
) -> None:
    loader = {
        "file": file,
        "order": "RANDOM",
        "seed": record.seed,
        "drop_last": False,
        "fields": ["image", "label", "row"],
        "indices": indices_m,
        "rows": rows_m,
    }
    write_long_lists(folder / "loader.json", loader)
    write_json(folder / "subset.json", asdict(record))
