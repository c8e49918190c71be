"""scores.h5: one float for each training row and score, beside what each score is and what it was computed from.

    /rows (n,) integers, /labels (n,) integers
    /scores/<name> (n,) float32, or float16 where they are packaged; with attributes: `definition`, `paper`, `high` =
                                 "hard", `of` (what it was computed from: cache, dynamics or import) and `source`, the
                                 fingerprint of that, `teacher_fingerprint` (not of imported ones), and its parameters
    /checksums/<dataset>         CRC-32 of every block of rows, uint32

Such a file is always written whole. Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.formats.appending import DAMAGE
from toolkit.formats.blocks import BlockReader, check_shapes, opened, record_in
from toolkit.formats.cache_writing import new_blocks

SCORES_SCHEMA = "kdtool scores 1"


@dataclass(frozen=True)
class ScoresRecord:
    """What the rows are of; what each score is of stands beside it. `teacher` is None where scores were imported."""

    dataset: str
    data_fingerprint: str
    limit: int | None
    teacher: str | None
    teacher_fingerprint: str | None
    command: str
    created: str
    versions: dict[str, str]


class Scored(NamedTuple):
    """A score: `values_n` (n,) floats, high = hard, and its attributes."""

    values_n: np.ndarray
    attributes: dict[str, Any]


class ScoresReader(BlockReader):
    """An opened scores file. Blocks are checked against their checksums as they are read."""

    def __init__(self, file: h5py.File, path: Path, record: ScoresRecord, made_by: str) -> None:
        super().__init__(file, path, made_by)
        self.record = record

    def __len__(self) -> int:
        return self._file["rows"].shape[0]

    @property
    def rows_n(self) -> np.ndarray:
        return self.read("rows").astype(np.int64)

    @property
    def labels_n(self) -> np.ndarray:
        return self.read("labels").astype(np.int64)

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The names of the scores, each with its attributes as plain Python values."""
        try:
            found = {name: dict(dataset.attrs) for name, dataset in self._file.get("scores", {}).items()}
        except DAMAGE as error:
            raise self._unreadable("scores", error) from error
        return {name: {key: _plain(value) for key, value in about.items()} for name, about in found.items()}

    def score(self, name: str) -> np.ndarray:
        """(n,) float64, high = hard. Raises UsageError for a name that the file does not hold."""
        if name not in self.scores:
            raise unknown_name("score", name, list(self.scores))
        return self.read(f"scores/{name}").astype(np.float64)

    def scored(self) -> dict[str, Scored]:
        """Every score as it is stored."""
        return {name: Scored(self.read(f"scores/{name}"), about) for name, about in self.scores.items()}

    def of_teacher(self, name: str) -> str | None:
        """The fingerprint of the teacher whose cache or training the score is of; None where it was imported."""
        found = self.scores[name].get("teacher_fingerprint", self.record.teacher_fingerprint)
        return None if found is None else str(found)

    def check_data(self, data_fingerprint: str, key: str) -> None:
        """Raises FailureError where the scores are of other data than those, which `key` names."""
        if self.record.data_fingerprint != data_fingerprint:
            raise FailureError(
                f"{self.path}: scores of {self.record.dataset} ({self.record.data_fingerprint}), but the data are "
                f"{key} ({data_fingerprint}). Run: {self.made_by}"
            )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def write_scores(
    path: Path,
    record: ScoresRecord,
    rows_n: np.ndarray,
    labels_n: np.ndarray,
    scores: dict[str, Scored],
    dtype: Any = np.float32,
) -> None:
    """Writes all of `scores` whole, in the place of a file that was there. One process at a time: hold `only_writer`.

    Raises UsageError for a value that `dtype` can't hold, or that is no number, and FailureError where the operating
    system refuses; the old file is then as it was.
    """
    stored = {name: _stored(name, values_n, dtype) for name, (values_n, _) in scores.items()}
    with new_blocks(path, SCORES_SCHEMA, asdict(record)) as out:
        out.write("rows", _smallest(rows_n))
        out.write("labels", _smallest(labels_n))
        for name in sorted(scores):
            out.write(f"scores/{name}", stored[name], **scores[name].attributes | {"high": "hard"})


def _smallest(integers_n: np.ndarray) -> np.ndarray:
    """In the smallest unsigned type that holds them: a packaged file should be small."""
    return integers_n.astype(np.min_scalar_type(int(integers_n.max(initial=0))))


def _stored(name: str, values_n: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored_n = np.asarray(values_n).astype(dtype)
    wrong = np.flatnonzero(~np.isfinite(stored_n))
    if len(wrong):
        raise UsageError(
            f"score {name}: row {wrong[0]} is {values_n[wrong[0]]}, which {np.dtype(dtype).name} can't hold "
            f"({len(wrong):,} rows are so). Leave the score out, or give finite, smaller numbers"
        )
    return stored_n


def reduced(path: Path, out: Path, names: tuple[str, ...] = ()) -> None:
    """Writes the scores `names` (default: all) of the file `path` as float16 to `out`, a quarter of the size of double.

    Raises UsageError for a name that is not there, or a value past what float16 holds."""
    with open_scores(path) as reader:
        held = reader.scored()
        for name in names:
            if name not in held:
                raise unknown_name("score", name, list(held))
        kept = {name: held[name] for name in names or held}
        write_scores(out, reader.record, reader.rows_n, reader.labels_n, kept, np.float16)


def _checked_record(file: h5py.File) -> ScoresRecord:
    """Raises ValueError when it is not there, not of this schema, or does not describe the datasets in the file."""
    record = record_in(file, SCORES_SCHEMA, ScoresRecord)
    rows = len(file["rows"]) if "rows" in file else -1
    check_shapes(file, dict.fromkeys(["rows", "labels", *(f"scores/{one}" for one in file.get("scores", {}))], (rows,)))
    return record


@contextmanager
def open_scores(path: Path, made_by: str = "kdtool score --force") -> Iterator[ScoresReader]:
    """Raises FailureError (what, found, what next) when `path` is missing, truncated, or no scores of this schema."""
    with opened(path, made_by, "scores", _checked_record) as (file, record):
        yield ScoresReader(file, path, record, made_by)
