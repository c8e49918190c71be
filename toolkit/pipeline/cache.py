"""kdtool cache-teacher: the one run of the teacher.

Shapes: n rows, v views, c classes, d features.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
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
from toolkit.formats.bundle import Bundle
from toolkit.formats.cache import BLOCK_ROWS, DTYPES, CacheReader, CacheRecord, new_cache, open_cache
from toolkit.formats.checkpoint import Checkpoint, load_checkpoint
from toolkit.formats.dataset import SPLITS, PackedData, cache_command
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import FeatureReader, build_model, images_seen, load_weights
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.runtime import Compute, compute_on
from toolkit.pipeline.teacher import find_teacher
from toolkit.scores import SCORES, compute_scores
from toolkit.scores.from_pass import PassArrays
from toolkit.teacher.caching import TeacherPass, parts_of, run_parts
from toolkit.views.plan import Plan


def slots_for(views: str, plan: Plan) -> int:
    """The number of slots `--views` asks for: a number, `all`, or `epochs:E`. Raises UsageError for anything else."""
    kind, _, number = views.partition(":")
    if views == "all":
        return plan.size
    if kind == "epochs" and number.isdecimal() and int(number) > 0:
        return min(int(number), plan.size)  # past the family's size, its members come round again
    if not views.isdecimal() or not 1 <= int(views) <= plan.size:
        raise UsageError(f"--views must be 1 to {plan.size} on this data set, 'all', or 'epochs:E', got '{views}'")
    return int(views)


def load_model(path: Path, data: PackedData, compute: Compute) -> tuple[Checkpoint, torch.nn.Module]:
    """A checkpoint's record and its network, evaluating. Raises FailureError when broken or not for these data."""
    checkpoint = load_checkpoint(path)
    record = data.record
    if checkpoint.classes != record.classes:
        raise FailureError(
            f"{path}: a teacher of {checkpoint.classes} classes, but {record.dataset} has {record.classes}. "
            f"Run: kdtool train-teacher --dataset {record.dataset}"
        )
    if checkpoint.dataset != record.dataset:
        raise FailureError(
            f"{path}: trained on {checkpoint.dataset}, but the data are {record.dataset}. "
            f"Run: kdtool train-teacher --dataset {record.dataset}"
        )
    try:
        model = build_model(checkpoint.arch, checkpoint.classes, checkpoint.width)
    except UsageError as error:  # here it is not the user who asked for it
        raise FailureError(f"{path}: names a network that can't be built ({error})") from error
    load_weights(model, checkpoint.weights, str(path))
    broken = [name for name, tensor in checkpoint.weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise FailureError(f"{path}: its weights are not all finite ({broken[0]}). Train it again with a smaller --lr")
    return checkpoint, compute.place(model).eval()


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
    dtype: str = "float16",
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
    if dtype not in DTYPES:
        raise UsageError(f"--dtype must be {' or '.join(DTYPES)}, got '{dtype}'")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
    compute = compute_on(device, precision, threads)
    bundle, data = bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    dataset = data.record.dataset
    for split in SPLITS:
        data.split(split)  # a damaged one is refused before anything is compared with it
    name, file = find_teacher(workspace, teacher, dataset)
    plan = data.record.plan
    slots = slots_for(views, plan)
    checkpoint, model = load_model(file, data, compute)
    job = _job(workspace, name, data, bundle)
    record = _record(job, name, checkpoint, data, compute, dtype, slots)
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
            dtype,
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
    job: _Job, name: str, checkpoint: Checkpoint, data: PackedData, compute: Compute, dtype: str, slots: int
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
        dtype=dtype,
        slots=slots,
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
    """Runs the missing parts and joins everything into the file; returns the seconds the teacher ran."""
    train, test = data.split("train"), data.split("test")
    folder = job.path.with_name(f"{job.path.name}.parts")
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    row_bytes = record.classes * np.dtype(record.dtype).itemsize
    need_space(job.path, 2 * len(job.rows_n) * row_bytes * record.slots)
    parts = Parts(folder, {**record.identity(), "kind": job.kind, "rows": len(job.rows_n)})
    first_new = 0 if old is None else old.slots
    train_parts = parts_of("train", len(job.rows_n), range(first_new, record.slots))
    test_parts = [] if old is not None else parts_of("test", len(test), range(1))
    plan = data.record.plan
    start_s = time.perf_counter()
    run_parts(teacher, train, lambda part: job.rows_n[part.start : part.stop], plan, train_parts, parts, progress)
    run_parts(teacher, test, lambda part: np.arange(part.start, part.stop), plan, test_parts, parts, progress)
    seconds = time.perf_counter() - start_s
    # by parts, not by this process: a killed run's finished parts are behind these logits too
    images = sum(part.stop - part.start for part in train_parts + test_parts)
    _join(job, replace(record, teacher_images=images + (old.record.teacher_images if old else 0)), old, parts, data)
    parts.discard()
    return seconds


def _join(job: _Job, record: CacheRecord, old: CacheReader | None, parts: Parts, data: PackedData) -> None:
    """Writes the file from the old cache's datasets and the new parts."""
    rows = len(job.rows_n)
    train, test = data.split("train"), data.split("test")

    def blocks(slot: int) -> Iterator[np.ndarray]:
        if old is not None and slot < old.slots:
            return old.blocks(f"slots/{slot}/logits")
        return (parts.load(part.key, "logits") for part in parts_of("train", rows, range(slot, slot + 1)))

    def features() -> Iterator[np.ndarray]:
        if old is not None:
            return old.blocks("features")
        return (parts.load(part.key, "features") for part in parts_of("train", rows, range(1)))

    if old is not None:
        test_logits = old.read("test/logits")
    else:
        test_logits = np.concatenate([parts.load(part.key, "logits") for part in parts_of("test", len(test), range(1))])
    top1 = 100 * float((test_logits.argmax(axis=1) == test.labels_n).mean())
    record = replace(record, teacher_top1=top1)
    labels_n = train.labels_n[job.rows_n]
    with new_cache(job.path, record) as out:
        out.write("rows", job.rows_n.astype(np.int64))
        out.write("labels", labels_n.astype(np.int64))
        for slot in range(record.slots):
            out.write_blocks(f"slots/{slot}/logits", (rows, record.classes), record.dtype, blocks(slot))
        out.write("test/logits", test_logits)
        out.write("test/labels", test.labels_n.astype(np.int64))
        if job.kind == "cache":
            held = list(features())
            out.write_blocks("features", (rows, held[0].shape[1]), np.float16, held)
            for name, values_n in _scores([blocks(slot) for slot in range(record.slots)], held, labels_n).items():
                score = SCORES[name]
                out.write(f"scores/{name}", values_n, definition=score.definition, paper=score.paper, high="hard")


def _scores(
    slots: list[Iterator[np.ndarray]], features: list[np.ndarray], labels_n: np.ndarray
) -> dict[str, np.ndarray]:
    """Block by block, so that no more than one block of all views is held."""
    pieces: dict[str, list[np.ndarray]] = {}
    for number, features_nd in enumerate(features):
        logits_vnc = np.stack([next(blocks) for blocks in slots])
        labels_b = labels_n[number * BLOCK_ROWS : number * BLOCK_ROWS + len(features_nd)]
        for name, values in compute_scores(PassArrays(logits_vnc, features_nd, labels_b)).items():
            pieces.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in pieces.items()}


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
