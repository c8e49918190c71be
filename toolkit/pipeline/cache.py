"""kdtool cache-teacher: the one run of the teacher.

Shapes: n rows, v views, c classes, d features.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import need_space
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import Bundle
from toolkit.formats.cache import BLOCK_ROWS, CacheReader, CacheRecord, CacheWriter, grown_cache, new_cache, open_cache
from toolkit.formats.checkpoint import Checkpoint
from toolkit.formats.dataset import SPLITS, PackedData, cache_command
from toolkit.formats.encodings import Arrays, Encoding, FullLogits, default_encoding
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import FeatureReader, images_seen
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.teacher import find_teacher, load_model
from toolkit.scores import SCORES, compute_scores
from toolkit.scores.from_pass import PassArrays
from toolkit.teacher.caching import ALL_CLASSES, TeacherPass, parts_of, run_parts
from toolkit.views.plan import Plan


def slots_for(views: str, plan: Plan) -> int:
    """The number of slots `--views` asks for: a number, `all`, or `epochs:E`. Raises UsageError for anything else."""
    kind, _, number = views.partition(":")
    if views == "all":
        if not plan.finite:
            raise UsageError(f"--views all: there is no end to the views of {plan.family}. Use epochs:E")
        return plan.size
    if kind == "epochs" and number.isdecimal() and int(number) > 0:
        return min(int(number), plan.size)  # past the family's size, its members come round again
    if not views.isdecimal() or not 1 <= int(views) <= plan.size:
        raise UsageError(f"--views must be 1 to {plan.size} on this data set, 'all', or 'epochs:E', got '{views}'")
    return int(views)


@dataclass(frozen=True)
class _Job:
    """One cache to be made: of all rows, or of a bundle's. `locked` is what only one command may write at a time."""

    path: Path
    locked: Path
    kind: str
    rows_n: np.ndarray
    made_by: str


def cache_teacher(
    workspace: Workspace,
    dataset: str = "fashion-mnist",
    teacher: str | None = None,
    views: str = "4",
    encoding: str = "auto",
    subset: str | None = None,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Runs the teacher once over every row's views and keeps logits, features and scores; with `subset`, only that
    bundle's rows, as its targets.

    Views already cached are not run again; a killed run resumes from its last part. Raises UsageError or FailureError.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    compute = compute_on(device, precision, threads)
    bundle, data = bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    dataset = data.record.dataset
    for split in SPLITS:
        data.split(split)  # a damaged one is refused before anything is compared with it
    encoding = default_encoding(data.record.classes) if encoding == "auto" else encoding
    Encoding.parse(encoding, data.record.classes)
    name, file = find_teacher(workspace, teacher, dataset)
    plan = data.record.plan
    slots = slots_for(views, plan)
    checkpoint, model = load_model(file, data, compute)
    job = _job(workspace, name, data, bundle)
    record = _record(job, name, checkpoint, data, compute, encoding, slots)
    with only_writer(job.locked), ExitStack() as stack:
        old = None if force else _usable(stack, job, record)
        if old is not None and old.slots >= slots:
            return _result(job.path, old, 0.0, model, unchanged=True)
        teacher_pass = TeacherPass(
            FeatureReader(model),
            checkpoint.mean,
            checkpoint.std,
            compute.device,
            compute.dtype,
            compute.precision,
            batch_size or (1024 if compute.device.type == "cuda" else 128),
        )
        seconds = _run(job, record, old, teacher_pass, data, force, progress)
    with open_cache(job.path) as cache:
        return _result(job.path, cache, seconds, model, unchanged=False)


def _job(workspace: Workspace, teacher: str, data: PackedData, bundle: Bundle | None) -> _Job:
    if bundle is None:
        made_by = cache_command(data.record, teacher)
        path = workspace.cache(teacher, data.record.limit)
        return _Job(path, path, "cache", np.arange(data.record.train_rows), made_by)
    made_by = bundle.targets_command(teacher)
    return _Job(bundle.targets_path(teacher), bundle.folder, "targets", bundle.rows_of(data.record), made_by)


def _record(
    job: _Job, name: str, checkpoint: Checkpoint, data: PackedData, compute: Compute, encoding: str, slots: int
) -> CacheRecord:
    return CacheRecord(
        kind=job.kind,
        dataset=data.record.dataset,
        data_fingerprint=data.record.train_fingerprint,
        test_fingerprint=data.record.test_fingerprint,
        limit=data.record.limit,
        teacher=name,
        teacher_fingerprint=checkpoint.fingerprint,
        teacher_arch=checkpoint.arch,
        classes=checkpoint.classes,
        mean=checkpoint.mean,
        std=checkpoint.std,
        plan=data.record.plan.to_record(),
        precision=compute.precision,
        encoding=encoding,
        slots=slots,
        views=[],
        teacher_top1=float("nan"),
        teacher_images=0,
        command=command_line(),
        created=now(),
        versions=versions(),
    )


def _usable(stack: ExitStack, job: _Job, record: CacheRecord) -> CacheReader | None:
    """The cache that is there, if it can be added to. Raises FailureError naming what differs."""
    if not job.path.is_file():
        return None
    old = stack.enter_context(open_cache(job.path, job.made_by))
    found, wanted = old.record.identity(), record.identity()
    different = [f"{name} {found[name]} → {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if not np.array_equal(old.read("rows"), job.rows_n):
        different.append("rows")
    if different:
        raise FailureError(
            f"{job.path}: a cache of something else ({'; '.join(different)}). To replace it run: {job.made_by}"
        )
    return old


def _run(
    job: _Job,
    record: CacheRecord,
    old: CacheReader | None,
    teacher: TeacherPass,
    data: PackedData,
    force: bool,
    progress: Progress,
) -> float:
    """Runs the missing parts and joins them into the file; returns the seconds the teacher ran."""
    train, test = data.split("train"), data.split("test")
    rows, first_new = len(job.rows_n), 0 if old is None else old.slots
    folder = job.path.with_name(f"{job.path.name}.parts")
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    encoding = Encoding.parse(record.encoding, record.classes)
    need_space(job.path, 2 * rows * encoding.bytes_per_view * (record.slots - first_new))
    parts = Parts(folder, {**record.identity(), "kind": job.kind, "rows": rows})
    train_parts = parts_of("train", rows, range(first_new, record.slots))
    test_parts = [] if old is not None else parts_of("test", len(test), range(1))
    plan = data.record.plan
    start_s = time.perf_counter()
    for split, positions, todo in [
        (train, lambda part: job.rows_n[part.start : part.stop], train_parts),
        (test, lambda part: np.arange(part.start, part.stop), test_parts),
    ]:
        run_parts(teacher, split, positions, plan, encoding, todo, parts, progress)
    seconds = time.perf_counter() - start_s
    # by parts, not by this process: a killed run's finished parts are behind these logits too
    images = sum(part.stop - part.start for part in train_parts + test_parts)
    record = replace(
        record,
        teacher_images=images + (old.record.teacher_images if old else 0),
        views=plan.checksums(job.rows_n, record.slots, train.sizes_n2[job.rows_n]),
    )
    _join(job, record, _Pieces(rows, encoding, old, parts), train, test)
    parts.discard()
    return seconds


@dataclass(frozen=True)
class _Pieces:
    """Every slot's blocks: of the old cache, or of parts just run. A part is a block: both are of BLOCK_ROWS rows."""

    rows: int
    encoding: Encoding
    old: CacheReader | None
    parts: Parts

    @property
    def numbers(self) -> range:
        return range(-(-self.rows // BLOCK_ROWS))

    def encoded(self, slot: int, number: int) -> Arrays:
        if self.old is not None and slot < self.old.slots:
            return self.old.encoded_block(slot, number)
        return {name: self._load(slot, number, name) for name in self.encoding.arrays(0)}

    def _load(self, slot: int, number: int, name: str) -> np.ndarray:
        return self.parts.load(parts_of("train", self.rows, range(slot, slot + 1))[number].key, name)

    def features(self, number: int) -> np.ndarray:
        return self._load(0, number, "features") if self.old is None else self.old.block("features", number)

    def canonical(self, number: int) -> np.ndarray:
        """The canonical view's logits of all classes, from the parts of a new cache: (n, c)."""
        return self._load(0, number, "logits" if isinstance(self.encoding, FullLogits) else ALL_CLASSES)

    def write_slot(self, out: CacheWriter, slot: int) -> None:
        for name, (shape, dtype) in self.encoding.arrays(self.rows).items():
            blocks = (self.encoded(slot, number)[name] for number in self.numbers)
            out.write_blocks(f"slots/{slot}/{name}", shape, dtype, blocks)


def _join(job: _Job, record: CacheRecord, pieces: _Pieces, train: Beton, test: Beton) -> None:
    """Writes a new file of the parts, or adds them to the old one, which is neither moved nor rewritten."""
    labels_n = train.labels_n[job.rows_n].astype(np.int64)
    if pieces.old is not None:
        with grown_cache(job.path, replace(record, teacher_top1=pieces.old.record.teacher_top1), job.made_by) as out:
            for slot in range(pieces.old.slots, record.slots):
                pieces.write_slot(out, slot)
            if job.kind == "cache":
                for name, values_n in _scores_of_views(pieces, record.slots, labels_n).items():
                    (out.replace if name in pieces.old.scores else out.write)(f"scores/{name}", values_n, **_told(name))
        return
    test_parts = parts_of("test", len(test), range(1))
    test_arrays = {
        name: np.concatenate([pieces.parts.load(part.key, name) for part in test_parts])
        for name in pieces.encoding.arrays(0)
    }
    top1 = 100 * float((pieces.encoding.top_class(test_arrays) == test.labels_n).mean())
    with new_cache(job.path, replace(record, teacher_top1=top1)) as out:
        out.write("rows", job.rows_n.astype(np.int64))
        out.write("labels", labels_n)
        for slot in range(record.slots):
            pieces.write_slot(out, slot)
        for name, array in test_arrays.items():
            out.write(f"test/{name}", array)
        out.write("test/labels", test.labels_n.astype(np.int64))
        if job.kind == "cache":
            features = [pieces.features(number) for number in pieces.numbers]
            out.write_blocks("features", (pieces.rows, features[0].shape[1]), np.float16, features)
            scores = _scores_of_the_image(pieces, labels_n) | _scores_of_views(pieces, record.slots, labels_n)
            for name, values_n in scores.items():
                out.write(f"scores/{name}", values_n, **_told(name))


def _told(name: str) -> dict[str, str]:
    """What stands beside a score's values."""
    return {"definition": SCORES[name].definition, "paper": SCORES[name].paper, "high": "hard"}


def _scores_of_the_image(pieces: _Pieces, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    names = [name for name, score in SCORES.items() if score.needs_views == 1]
    return _by_blocks(pieces, names, labels_n, lambda number: pieces.canonical(number)[None])


def _scores_of_views(pieces: _Pieces, slots: int, labels_n: np.ndarray) -> dict[str, np.ndarray]:
    """From what is stored, of old slots and new: what grew equals what was cached at once."""

    def logits_vnc(number: int) -> np.ndarray:
        stored = (pieces.encoded(slot, number) for slot in range(slots))
        full = isinstance(pieces.encoding, FullLogits)
        return np.stack([arrays["logits"] if full else pieces.encoding.dense(arrays) for arrays in stored])

    names = [name for name, score in SCORES.items() if 1 < score.needs_views <= slots]
    return _by_blocks(pieces, names, labels_n, logits_vnc) if names else {}


def _by_blocks(
    pieces: _Pieces, names: list[str], labels_n: np.ndarray, logits_vnc: Callable[[int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Block by block, so that no more than one block of all views is held."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number in pieces.numbers:
        labels_b = labels_n[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        arrays = PassArrays(logits_vnc(number), pieces.features(number), labels_b)
        for name, values_b in compute_scores(arrays, names).items():
            found[name].append(values_b)
    return {name: np.concatenate(values) for name, values in found.items()}


def _result(path: Path, cache: CacheReader, seconds: float, model: torch.nn.Module, unchanged: bool) -> dict[str, Any]:
    images = images_seen(model)
    return {
        "path": str(path),
        "rows": len(cache),
        "views": cache.slots,
        "classes": cache.record.classes,
        "teacher": cache.record.teacher,
        "teacher_top1": cache.record.teacher_top1,
        "images_per_s": images / seconds if seconds else 0.0,
        "bytes_per_view": cache.bytes_per_view,
        "teacher_images": images,
        "seconds": seconds,
        "unchanged": unchanged,
    }
