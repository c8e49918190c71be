"""cache.h5 and a bundle's targets/<teacher>.h5: one format, for all rows or for a subset's.

    /rows (n,) int64             row numbers in the packed data set, increasing
    /labels (n,) int64
    /slots/<k>/…                 raw logits of slot k's view, as formats/encodings.py stores them: `logits` (n, c), or
                                 `topk/…`, or `int8/…`; slot 0 is the canonical view
    /features (n, d) float16     what the last linear layer read, on slot 0 (caches only)
    /scores/<name> (n,) float32  with its definition as attributes (caches only)
    /test/…                      the canonical view's logits of the test split, likewise, and /test/labels (m,); missing
                                 where logits were imported without them, as features may be
    /checksums/<dataset>         CRC-32 of every block of rows, uint32

Everything it was made from stands in the attribute `record`. Shapes: n rows, m test rows, c classes, d features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.hashing import fingerprint
from toolkit.core.records import record_of
from toolkit.formats.appending import DAMAGE
from toolkit.formats.blocks import BlockReader, check_shapes, opened
from toolkit.formats.encodings import Arrays, Encoding
from toolkit.formats.mapped import SlotsOnDisk, mapped
from toolkit.views.plan import Plan

SCHEMA = 2
IMPORTED = "imported"  # instead of an architecture, where logits came from outside


@dataclass(frozen=True)
class CacheRecord:
    """What a cache was made from. `kind` is `cache` or `targets`; `teacher_images` counts the forward passes spent.

    `views` holds the checksums of each slot's geometry (Plan.checksums): views are computed again, not stored.
    `cut_from` is the fingerprint of the slots that targets were copied from, None where the teacher ran for them.
    `teacher_top1` is None where nothing is known of the teacher on the test split: then there is no /test. Of imported
    logits `teacher_arch` is IMPORTED, `mean` and `std` are empty, and `precision` is unknown. `features_are` "logits"
    of a network whose logits no linear layer makes; else they are what its last linear layer read. `teacher_weights`
    says of torchvision's and timm's teachers which file they are, what images it was made for, and which classes are
    the data's.
    """

    kind: str
    dataset: str
    data_fingerprint: str
    test_fingerprint: str
    limit: int | None
    teacher: str
    teacher_fingerprint: str
    teacher_arch: str
    classes: int
    mean: list[float]
    std: list[float]
    plan: dict[str, Any]
    precision: str
    encoding: str
    slots: int
    views: list[int]
    teacher_top1: float | None
    teacher_images: int
    command: str
    created: str
    versions: dict[str, str]
    cut_from: str | None = None
    features_are: str | None = None
    teacher_weights: dict[str, Any] | None = None

    @property
    def imported(self) -> bool:
        """Whether the logits came from outside: there is no network to run again."""
        return self.teacher_arch == IMPORTED

    def import_command(self, path: Path) -> str:
        """The command that makes imported logits in the file `path` again."""
        limit = "" if self.limit is None else f" --limit {self.limit}"
        of = f"--dataset {self.dataset}{limit}"
        if self.kind == "targets" and self.cut_from is None:
            of = f"--subset {path.parent.parent.name}"
        files = "--logits FILE…" + ("" if self.teacher_top1 is None else " --test-logits FILE")
        return f"kdtool import-logits {of} --name {self.teacher} {files} --encoding {self.encoding} --force"

    def to_record(self) -> dict[str, Any]:
        """Its fields; of weights only where there is something to say, as an older kdtool does not know them."""
        return {name: value for name, value in asdict(self).items() if name != "teacher_weights" or value is not None}

    def identity(self) -> dict[str, Any]:
        """What must agree between a cache and whoever adds to it or learns from it."""
        names = (
            "dataset",
            "data_fingerprint",
            "test_fingerprint",
            "limit",
            "teacher_fingerprint",
            "plan",
            "precision",
            "encoding",
        )
        return {name: getattr(self, name) for name in names}


class CacheReader(BlockReader):
    """An opened cache or targets file. Blocks are checked against their checksums as they are read."""

    def __init__(self, file: h5py.File, path: Path, record: CacheRecord, made_by: str) -> None:
        super().__init__(file, path, made_by)
        self.record = record
        if record.imported:
            self.made_by = record.import_command(path)
        elif made_by.startswith("kdtool cache-teacher"):  # the same again, not what is made by default
            self.made_by += f" --views {record.slots} --encoding {record.encoding}"
        self.plan = Plan.from_record(record.plan, str(path))

    def __len__(self) -> int:
        return self._file["rows"].shape[0]

    @property
    def slots(self) -> int:
        return self.record.slots

    @property
    def has_features(self) -> bool:
        return "features" in self._file

    @property
    def has_test(self) -> bool:
        """Whether it is known what the teacher says of the test split."""
        return self.record.teacher_top1 is not None

    @property
    def scores(self) -> dict[str, dict[str, str]]:
        """The names of the scores, each with its definition, paper and equation."""
        try:
            return {name: dict(dataset.attrs) for name, dataset in self._file.get("scores", {}).items()}
        except DAMAGE as error:
            raise self._unreadable("scores", error) from error

    @property
    def encoding(self) -> Encoding:
        return Encoding.parse(self.record.encoding, self.record.classes)

    @property
    def bytes_per_view(self) -> int:
        return self.encoding.bytes_per_view

    def encoded(self, slots: int) -> dict[str, SlotsOnDisk]:
        """The first `slots` slots as they are stored, (k, n, …), mapped: checked now, and held by nobody.

        The maps outlive this reader. Raises FailureError when a block is not what was written."""
        if slots > self.slots:
            raise UsageError(f"{self.path}: holds {self.slots} views, {slots} were asked for. Run: {self.made_by}")
        arrays = {}
        for name in self.encoding.arrays(0):
            stored = [f"slots/{slot}/{name}" for slot in range(slots)]
            for dataset in stored:
                for _ in self.blocks(dataset):
                    pass
            try:
                arrays[name] = SlotsOnDisk([mapped(self._dataset(dataset)) for dataset in stored])
            except DAMAGE as error:
                raise self._unreadable(f"slots/…/{name}", error) from error
        return arrays

    def features_mapped(self) -> np.ndarray:
        """The features, (n, d) float16, mapped: checked now, block by block, and held by nobody.

        The map outlives this reader. Raises FailureError when a block is not what was written, or there are none."""
        for _ in self.blocks("features"):
            pass
        try:
            return mapped(self._dataset("features"))
        except DAMAGE as error:
            raise self._unreadable("features", error) from error

    def encoded_rows(self, slot: int, positions: np.ndarray) -> Arrays:
        """The increasing `positions` of a slot, as they are stored."""
        return {name: self.read(f"slots/{slot}/{name}", positions) for name in self.encoding.arrays(0)}

    def test_classes(self) -> np.ndarray | None:
        """What the teacher takes each test image for: (m,) int64; None where that is not known."""
        if not self.has_test:
            return None
        names = list(self.encoding.arrays(0))
        blocks = zip(*(self.blocks(f"test/{name}") for name in names), strict=True)
        found = [self.encoding.top_class(dict(zip(names, block, strict=True))) for block in blocks]
        return np.concatenate([np.empty(0, np.int64), *found])

    def check_views(self, sizes_n2: np.ndarray, slots: int) -> None:
        """Raises FailureError where this kdtool draws other views than those cached; sizes are the rows' images'."""
        if self.plan.checksums(self.read("rows"), slots, sizes_n2) != self.record.views[:slots]:
            raise FailureError(
                f"{self.path}: cached on views that this kdtool draws otherwise. Run: {self.made_by}, "
                "or use the version that made it (kdtool inspect tells)"
            )

    def score(self, name: str) -> np.ndarray:
        """(n,) float32, high = hard. Raises UsageError for a name the file does not hold."""
        if name not in self.scores:
            raise unknown_name("score", name, list(self.scores))
        return self.read(f"scores/{name}")

    def fingerprint(self, slots: int) -> str:
        """16 hexadecimal digits over what the first `slots` slots were made from, and their checksums."""
        stored = [f"slots/{slot}/{name}" for slot in range(slots) for name in self.encoding.arrays(0)]
        return fingerprint(json.dumps(self.record.identity(), sort_keys=True), *map(self.checksums, stored))


def _checked_record(file: h5py.File) -> CacheRecord:
    """Raises ValueError when it is not there, not of this schema, or does not describe the datasets in the file."""
    schema = file.attrs.get("schema", "none")
    if not np.array_equal(schema, SCHEMA):
        raise ValueError(f"expected schema {SCHEMA}, found {schema}")
    record = record_of(CacheRecord, json.loads(str(file.attrs.get("record", ""))))
    encoding = Encoding.parse(record.encoding, record.classes)
    if not 1 <= record.slots <= record_of(Plan, record.plan).size or len(record.views) != record.slots:
        raise ValueError(f"its record says {record.slots} views")
    rows, test_rows = (len(file[name]) if name in file else -1 for name in ("rows", "test/labels"))
    shapes: dict[str, tuple[int, ...]] = {"rows": (rows,), "labels": (rows,)}
    places = [(f"slots/{slot}", rows) for slot in range(record.slots)]
    if record.teacher_top1 is not None:
        shapes["test/labels"] = (test_rows,)
        places.append(("test", test_rows))
    for place, length in places:
        shapes |= {f"{place}/{name}": shape for name, (shape, _) in encoding.arrays(length).items()}
    check_shapes(file, shapes)
    return record


@contextmanager
def open_cache(path: Path, made_by: str = "kdtool cache-teacher --force") -> Iterator[CacheReader]:
    """Raises FailureError (what, found, what next) when `path` is missing, truncated, or not a cache of this schema."""
    with opened(path, made_by, "a cache", _checked_record) as (file, record):
        yield CacheReader(file, path, record, made_by)


def is_imported(path: Path) -> bool:
    """Whether there is a cache that says its logits were imported; False for a file that can't be read."""
    try:
        with h5py.File(path, "r") as file:
            record = json.loads(str(file.attrs.get("record", "")))
    except (OSError, *DAMAGE):
        return False
    return isinstance(record, dict) and record.get("teacher_arch") == IMPORTED
