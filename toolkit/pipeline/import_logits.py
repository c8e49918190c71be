"""kdtool import-logits: targets made elsewhere, by an ensemble, another framework or a service, as a teacher's cache.

No network runs here, and torch is not needed. Shapes: n rows, m test rows, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, as_paths
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import need_space
from toolkit.core.hashing import fingerprint
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.sizes import in_words
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.cache import IMPORTED, CacheReader, CacheRecord, open_cache
from toolkit.formats.cache_writing import CacheWriter
from toolkit.formats.dataset import DataRecord
from toolkit.formats.encodings import Encoding, FullLogits, default_encoding
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache_content import CacheContent, bytes_beside_logits, write_cache
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import Foreseen, already_there, may_be_dry
from toolkit.pipeline.foresee.trials import SECONDS, copied_bytes_per_s, seconds_of
from toolkit.pipeline.given_arrays import GivenTable, check_features, check_logits, open_slots, open_table
from toolkit.pipeline.imported_teachers import refuse_taken


@dataclass(frozen=True)
class _Place:
    """Where the logits go, and of which rows they are: of all training rows, or of a bundle's. `what` they are in
    words, `locked` what only one command may write at a time."""

    path: Path
    locked: Path
    kind: str
    data: DataRecord
    rows_n: np.ndarray
    labels_n: np.ndarray
    sizes_n2: np.ndarray
    what: str


@dataclass(frozen=True)
class _Given(CacheContent):
    """The arrays of the files, encoded as they are asked for."""

    slots: list[GivenTable]
    given_features: GivenTable | None

    def block(self, slot: int, number: int, name: str) -> np.ndarray:
        return self.encoded(slot, number)[name]

    def encoded(self, slot: int, number: int) -> dict[str, np.ndarray]:
        """Read and encoded once, for all of a slot's datasets."""
        return _encode(self.encoding, self.slots[slot], self.slots[slot].block(number))

    def write_slot(self, out: CacheWriter, slot: int) -> None:
        """Each block is encoded once: its first array is written at once, the others are held, as they are smaller."""
        (first, (shape, dtype)), *others = self.encoding.arrays(self.rows).items()
        held: dict[str, list[np.ndarray]] = {name: [] for name, _ in others}

        def blocks() -> Iterator[np.ndarray]:
            for block_bc in self.slots[slot].blocks:
                arrays = _encode(self.encoding, self.slots[slot], block_bc)
                for name in held:
                    held[name].append(arrays[name])
                yield arrays[first]

        out.write_blocks(f"slots/{slot}/{first}", shape, dtype, blocks())
        for name, (shape, dtype) in others:
            out.write_blocks(f"slots/{slot}/{name}", shape, dtype, held[name])

    def features(self, number: int) -> np.ndarray | None:
        return None if self.given_features is None else self.given_features.block(number).astype(np.float16)

    def canonical(self, number: int) -> np.ndarray:
        """Rounded as the pass of a network rounds what scores are computed from."""
        full = self.encoding if isinstance(self.encoding, FullLogits) else FullLogits(self.encoding.classes, "float16")
        return _encode(full, self.slots[0], self.slots[0].block(number))["logits"]


@partial(may_be_dry, needs_data=lambda asked: asked["subset"] is None or asked["test_logits"] is not None)
def import_logits(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    name: str,
    logits: Place | Sequence[Place],
    test_logits: Place | None = None,
    features: Place | None = None,
    encoding: str = defaults.ENCODING,
    dataset: str = defaults.DATASET,
    subset: str | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Keeps logits from outside as the cache of a teacher called `name`, or as targets of `subset`'s rows.

    `logits` are .npy files (n, c), float16, float32 or float64, in the order of the training rows (or of the subset's):
    one for each slot, the canonical view's first, or one file (k, n, c). What a slot shows, `toolkit.slot_images` says.
    `test_logits` (m, c) are of the test split, `features` (n, d) what the teacher's last layer read on slot 0. The
    scores of the pass are computed as far as these allow. The same arrays again change nothing; `force` replaces other
    imported ones, never a network's. With `dry_run` nothing is written: the result is `Foreseen.told`. Raises
    UsageError or FailureError.
    """
    workspace, data_dir, test_logits = Workspace.at(workspace), as_path(data_dir), as_path(test_logits)
    features, files = as_path(features), as_paths(logits)
    if not files:
        raise UsageError("--logits: name a .npy file of logits, for each slot one, or one of all")
    if features is not None and subset is not None:
        raise UsageError(
            "--features are of a whole data set's cache, and targets of a --subset keep none. Leave it out"
        )
    bundle = None if subset is None else open_bundle(workspace.subset(subset))
    refuse_taken(workspace, name, bundle)
    place = _place(workspace, name, bundle, dataset, data_dir, limit, progress)
    classes, rows = place.data.classes, len(place.rows_n)
    slots = open_slots(files, rows, classes, place.what)
    _check_slots(len(slots), place.data)
    test = None if test_logits is None else _test_split(workspace, place.data, data_dir, progress)
    test_table = None
    if test_logits is not None and test is not None:
        test_table = open_table(test_logits, "--test-logits", len(test), classes, f"test image of {place.data.key}")
    features_table = None if features is None else open_table(features, "--features", rows, None, place.what)
    if dry_run:
        resolved = _encoding(encoding, place, force)
        return _foreseen(name, place, resolved, slots, test_table, features_table, files[0], force, progress)
    with only_writer(place.locked):
        resolved = _encoding(encoding, place, force)
        teacher = _fingerprint(slots, test_table, features_table, progress)
        passes = rows * len(slots) + (0 if test is None else len(test))
        record = _record(name, place, teacher, resolved.name, len(slots), passes)
        unchanged = not force and _is_there(place, record)
        if not unchanged:
            need_space(place.path, rows * len(slots) * resolved.bytes_per_view)
            test_block = None if test_table is None else _test_block(resolved, test_table)
            test_labels_m = np.empty(0, dtype=np.int64) if test is None else test.labels_n
            content = _Given(rows, resolved, slots, features_table)
            write_cache(place.path, record, content, place.rows_n, place.labels_n, test_block, test_labels_m, progress)
    with open_cache(place.path, record.import_command(place.path)) as cache:
        return _result(cache, unchanged)


def _foreseen(
    name: str,
    place: _Place,
    encoding: Encoding,
    slots: list[GivenTable],
    test: GivenTable | None,
    features: GivenTable | None,
    file: Path,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    """What is there already is compared, for which the files are read whole."""
    rows, more = len(place.rows_n), {"teacher": name, "rows": len(place.rows_n), "views": len(slots)}
    if place.path.is_file() and not force:
        teacher = _fingerprint(slots, test, features, progress)
        if _is_there(place, _record(name, place, teacher, encoding.name, len(slots), 0)):
            return already_there(place.path, **more)
    test_rows = 0 if test is None else len(test.array_nd)
    width = None if features is None else features.array_nd.shape[1]
    size = (rows * len(slots) + test_rows) * encoding.bytes_per_view
    size += bytes_beside_logits(place.kind, rows, test_rows, len(slots), width)
    speed = copied_bytes_per_s(file)
    reading_s = seconds_of(lambda progress: _fingerprint(slots, test, features, progress))
    basis = f"reading begun here, for {SECONDS:g} s at most; {in_words(speed)} a second copied here"
    return Foreseen(place.path, False, size, (2 * reading_s + size / speed) / 60, basis, more=more).told()


def _place(
    workspace: Workspace,
    name: str,
    bundle: Bundle | None,
    dataset: str,
    data_dir: Path | None,
    limit: int | None,
    progress: Progress,
) -> _Place:
    """A bundle stands for itself: the data that it was cut from need not be there."""
    if bundle is not None:
        images, at_m = bundle.images(), bundle.indices_m
        labels_m, sizes_m2 = images.labels_n[at_m].astype(np.int64), images.sizes_n2[at_m]
        what, path = f"row of subset {bundle.record.name}", bundle.targets_path(name)
        return _Place(path, bundle.folder, "targets", bundle.data, bundle.rows_m, labels_m, sizes_m2, what)
    packed = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    train, record = packed.split("train"), packed.record
    path, what = workspace.cache(name, record.limit), f"training row of {record.key}"
    labels_n = train.labels_n.astype(np.int64)
    return _Place(path, path, "cache", record, np.arange(len(train)), labels_n, train.sizes_n2, what)


def _test_split(workspace: Workspace, data: DataRecord, data_dir: Path | None, progress: Progress) -> Beton:
    """Raises FailureError when it is not the one that a subset knows."""
    packed = ensure_packed(workspace, data.dataset, data_dir, data.limit, progress=progress, from_file=True)
    return packed.test_split_of(data)


def _check_slots(slots: int, data: DataRecord) -> None:
    if slots > data.plan.size:
        raise UsageError(
            f"--logits: of {slots} slots, but {data.key} has {data.plan.size} views ({data.plan.geometry_in_words}). "
            "Give no more"
        )


def _encoding(name: str, place: _Place, force: bool) -> Encoding:
    """`auto` is that of the cache which is there, unless it is made again, else the default."""
    if name == "auto":
        name = default_encoding(place.data.classes)
        if place.path.is_file() and not force:
            with open_cache(place.path) as cache:
                name = cache.record.encoding
    return Encoding.parse(name, place.data.classes)


def _test_block(encoding: Encoding, table: GivenTable) -> Callable[[int, str], np.ndarray]:
    return lambda number, name: _encode(encoding, table, table.block(number))[name]


def _encode(encoding: Encoding, table: GivenTable, logits_bc: np.ndarray) -> dict[str, np.ndarray]:
    """Raises FailureError, naming the file, for logits that the encoding can't hold."""
    try:
        return encoding.encode(np.asarray(logits_bc, dtype=np.promote_types(logits_bc.dtype, np.float32)))
    except FailureError as error:
        raise FailureError(f"{table.name}: {str(error).removeprefix('teacher: ')}") from error


def _fingerprint(
    slots: list[GivenTable], test: GivenTable | None, features: GivenTable | None, progress: Progress
) -> str:
    """Of all arrays, each checked on the way: the imported teacher's own."""
    tables = [*slots, *(table for table in (test, features) if table is not None)]
    with progress("import-logits", sum(len(table.array_nd) for table in tables), "rows") as tick:
        parts = [f"slot {slot} {check_logits(table, tick)}" for slot, table in enumerate(slots)]
        parts += [f"test {check_logits(test, tick)}"] if test is not None else []
        parts += [f"features {check_features(features, tick)}"] if features is not None else []
    return fingerprint(*parts)


def _record(name: str, place: _Place, teacher: str, encoding: str, slots: int, passes: int) -> CacheRecord:
    data = place.data
    return CacheRecord(
        kind=place.kind,
        dataset=data.dataset,
        data_fingerprint=data.train_fingerprint,
        test_fingerprint=data.test_fingerprint,
        limit=data.limit,
        teacher=name,
        teacher_fingerprint=teacher,
        teacher_arch=IMPORTED,
        classes=data.classes,
        mean=[],
        std=[],
        plan=data.plan.to_record(),
        precision="unknown",
        encoding=encoding,
        slots=slots,
        views=data.plan.checksums(place.rows_n, slots, place.sizes_n2),
        teacher_top1=None,  # written with the test split's logits
        teacher_images=passes,
        command=command_line(),
        created=now(),
        versions=versions(),
    )


def _is_there(place: _Place, wanted: CacheRecord) -> bool:
    """Whether these very logits are there. Raises FailureError, naming what differs, where others are."""
    if not place.path.is_file():
        return False
    with ExitStack() as stack:
        cache = stack.enter_context(open_cache(place.path, wanted.import_command(place.path)))
        found, asked = ({**record.identity(), "slots": record.slots} for record in (cache.record, wanted))
        different = [f"{name} {found[name]} → {asked[name]}" for name in asked if found[name] != asked[name]]
        if not np.array_equal(cache.read("rows"), place.rows_n):
            different.append("rows")
        if different:
            raise FailureError(
                f"{place.path}: other imported logits ({'; '.join(different)}). "
                "Give these another --name, or pass --force to replace them"
            )
        cache.check_views(place.sizes_n2, cache.slots)
    return True


def _result(cache: CacheReader, unchanged: bool) -> dict[str, Any]:
    record = cache.record
    return {
        "path": str(cache.path),
        "rows": len(cache),
        "views": cache.slots,
        "classes": record.classes,
        "teacher": record.teacher,
        "teacher_top1": record.teacher_top1,
        "features": cache.has_features,
        "scores": list(cache.scores),
        "encoding": record.encoding,
        "bytes_per_view": cache.bytes_per_view,
        "teacher_images": record.teacher_images,
        "unchanged": unchanged,
    }
