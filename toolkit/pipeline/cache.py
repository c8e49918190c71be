"""kdtool cache-teacher: the one run of the teacher."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, remove_folder
from toolkit.core.locks import only_writer
from toolkit.core.memory import within_memory
from toolkit.core.processes import ALONE, Processes, in_processes
from toolkit.core.progress import Progress, silent
from toolkit.formats.bundle import rows_fingerprint
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.parts import Parts
from toolkit.formats.workspace import Workspace
from toolkit.models.zoo import images_seen
from toolkit.pipeline.cache_content import FLOAT32, bytes_beside_logits
from toolkit.pipeline.cache_join import Pieces, join
from toolkit.pipeline.cache_request import Request, open_request
from toolkit.pipeline.library_teachers import Note
from toolkit.pipeline.verify import verified
from toolkit.scores import SCORES, possible_scores
from toolkit.teacher.caching import Part, parts_of, run_parts

VERIFIED_SAMPLES, VERIFIED_SLOTS = 64, 16
_HARDLY = 1.2  # times chance


@within_memory
@in_processes
def cache_teacher(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    dataset: str = defaults.DATASET,
    teacher: str | None = None,
    arch: str | None = None,
    width: int | None = None,
    class_map: Place | None = None,
    views: str | int | None = None,
    encoding: str = defaults.ENCODING,
    subset: str | None = None,
    batch_size: int | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    memory_limit: str | int | None = None,
    force: bool = False,
    verify: bool = defaults.VERIFY,
    dry_run: bool = False,
    processes: Processes = ALONE,
    progress: Progress = silent,
    on_note: Note = lambda line: None,
) -> dict[str, Any]:
    """Runs the teacher once over every row's views and keeps logits, features and scores; with `subset`, only that
    bundle's rows, as its targets.

    `teacher` is a name, a library's (torchvision:NETWORK@WEIGHTS) or a file, by default the one that comes with kdtool;
    `arch` and `width` say of what network a plain state_dict is, and `class_map` which classes of a library's teacher
    the data's are. `views` of each row are cached: a number (default: 2), "all" or "epochs:E". `encoding` is of the
    stored logits: float16, float32, int8 or topk:K; auto goes by what is there, else by the number of classes.

    Views already cached are not run again, nor moved on disk; a killed run resumes from its last part. Started by
    torchrun, several processes share the parts, and as many or others may go on. A few views are then asked for again
    (`verify`). With `dry_run` it only tells what that would cost: see `cache_cost`. Raises UsageError or FailureError.
    """
    progress = progress if processes.first else silent
    asked: dict[str, Any] = {
        "dataset": dataset,
        "teacher": teacher,
        "arch": arch,
        "width": width,
        "class_map": as_path(class_map),
        "views": views,
        "encoding": encoding,
        "subset": subset,
        "batch_size": batch_size,
        "data_dir": as_path(data_dir),
        "limit": limit,
        "device": device,
        "precision": precision,
        "threads": threads,
        "fresh": force,
        "progress": progress,
        "on_note": on_note,
    }
    workspace = Workspace.at(workspace)
    if dry_run:
        from toolkit.pipeline.cache_cost import cache_cost  # which asks this module what is left to do

        return processes.first_only(lambda: cache_cost(workspace, **asked))
    request = open_request(workspace, processes=processes, **asked)
    with only_writer(request.locked, processes), ExitStack() as stack:
        old = None if force else usable(stack, request)
        unchanged = old is not None and old.slots >= request.record.slots
        first_new = 0 if old is None or unchanged else old.slots
        before, seconds = images_seen(request.model), 0.0
        if not unchanged:
            seconds = _run(request, old, force, processes, progress)
        images = processes.total(images_seen(request.model) - before)

    def told() -> dict[str, Any]:
        with open_cache(request.path, request.made_by) as cache:
            result = _result(request, cache, seconds, images, unchanged)
            _warn_of_chance(result, on_note)
            # one that is there already too: an earlier run may have failed just here
            slots = np.arange(first_new, cache.slots)[-VERIFIED_SLOTS:]
            return result | ({"verified": verified(request, cache, VERIFIED_SAMPLES, 0, slots)} if verify else {})

    return processes.first_only(told)


def usable(stack: ExitStack, request: Request) -> CacheReader | None:
    """The cache that is there, if it can be added to. Raises FailureError naming what differs."""
    if not request.path.is_file():
        return None
    old = stack.enter_context(open_cache(request.path, request.made_by))
    different = "; ".join(request.differences(old))
    if different:
        again = f"{request.made_by} --views {request.record.slots} --encoding {request.record.encoding}"
        raise FailureError(f"{request.path}: a cache of something else ({different}). To replace it run: {again}")
    old.check_views(request.data.split("train").sizes_n2[request.rows_n], old.slots)
    return old


@dataclass(frozen=True)
class Work:
    """The parts that a cache lacks, finished or not, and where finished ones lie."""

    train: list[Part]
    test: list[Part]
    done: Parts

    @property
    def images(self) -> int:
        return sum(part.stop - part.start for part in self.train + self.test)

    @property
    def missing_images(self) -> int:
        return sum(part.stop - part.start for part in self.train + self.test if part.key not in self.done)


def work_for(request: Request, old: CacheReader | None) -> Work:
    """Raises FailureError, naming what differs, where unfinished work of another kind lies there."""
    record, rows = request.record, len(request.rows_n)
    identity = {**record.identity(), "kind": record.kind, "rows": rows_fingerprint(request.rows_n)}
    done = Parts(request.path.with_name(f"{request.path.name}.parts"), identity)
    new = range(0 if old is None else old.slots, record.slots)
    test_rows = request.data.record.test_rows
    return Work(parts_of("train", rows, new), [] if old is not None else parts_of("test", test_rows, range(1)), done)


def new_bytes(request: Request, fresh: bool, images: int) -> int:
    """What a file will hold more with the logits of so many images: of a cache scores too, and of a `fresh` one, which
    is written whole, features, row numbers and labels. HDF5's own tables and checksums are not counted."""
    record, rows, size = request.record, len(request.rows_n), images * request.encoding.bytes_per_view
    if fresh:
        test_rows, width = request.data.record.test_rows, request.feature_width
        return size + bytes_beside_logits(record.kind, rows, test_rows, record.slots, width)
    if record.kind == "cache":
        again = [name for name in possible_scores(record.slots, True) if SCORES[name].needs_views > 1]
        size += rows * FLOAT32 * len(again)
    return size


def _run(request: Request, old: CacheReader | None, force: bool, processes: Processes, progress: Progress) -> float:
    """Runs the missing parts and joins them into the file; returns the seconds the teacher ran."""
    if force:
        processes.first_only(lambda: remove_folder(request.path.with_name(f"{request.path.name}.parts")))
    work = work_for(request, old)
    need_space(request.path, 2 * new_bytes(request, old is None, work.images))  # once in parts, and once joined
    start_s = time.perf_counter()
    _run_parts(request, work, processes, progress)
    processes.barrier()
    seconds = time.perf_counter() - start_s
    processes.first_only(lambda: _join(request, old, work, progress))
    return seconds


def _run_parts(request: Request, work: Work, processes: Processes, progress: Progress) -> None:
    """Runs the parts that are not there yet, of several processes each its share of them."""
    train, test, rows_n = request.data.split("train"), request.data.split("test"), request.rows_n
    mine = set(processes.first_only(lambda: _begun(work, processes))[processes.rank :: processes.count])
    for split, positions, parts in [
        (train, lambda part: rows_n[part.start : part.stop], work.train),
        (test, lambda part: np.arange(part.start, part.stop), work.test),
    ]:
        todo = [part for part in parts if part.key in mine]
        plan, encoding = request.data.record.plan, request.encoding
        run_parts(request.teacher, split, positions, plan, encoding, todo, work.done, progress)


def _begun(work: Work, processes: Processes) -> list[str]:
    """The missing parts' keys: listed once, before any process saves one."""
    if processes.count > 1:
        work.done.begin()
    return [part.key for part in work.train + work.test if part.key not in work.done]


def _join(request: Request, old: CacheReader | None, work: Work, progress: Progress) -> None:
    """Writes the cache from its parts, or adds them to the one that is there."""
    rows_n, train, test = request.rows_n, request.data.split("train"), request.data.split("test")
    # by parts, not by this process: a killed run's finished parts are behind these logits too
    images = work.images + (0 if old is None else old.record.teacher_images)
    views = request.data.record.plan.checksums(rows_n, request.record.slots, train.sizes_n2[rows_n])
    finished = replace(request.record, teacher_images=images, views=views)
    join(request, finished, Pieces(len(rows_n), request.encoding, old, work.done), train, test, progress)
    work.done.discard()


def _warn_of_chance(result: dict[str, Any], on_note: Note) -> None:
    """A teacher that guesses is mostly one whose classes are not the data's, or in another order."""
    chance = 100 / result["classes"]
    if result["teacher_top1"] is not None and result["teacher_top1"] <= _HARDLY * chance:
        on_note(
            f"{result['teacher']}: {result['teacher_top1']:.2f} % on the test split is hardly more than chance, "
            f"{chance:.2f} %: has it the data's classes, in the same order, and was it trained long enough?"
        )


def _result(request: Request, cache: CacheReader, seconds: float, images: int, unchanged: bool) -> dict[str, Any]:
    return {
        "path": str(request.path),
        "rows": len(cache),
        "views": cache.slots,
        "classes": cache.record.classes,
        "teacher": cache.record.teacher,
        "teacher_top1": cache.record.teacher_top1,
        "images_per_s": images / seconds if seconds else 0.0,
        "encoding": cache.record.encoding,
        "bytes_per_view": cache.bytes_per_view,
        "teacher_images": images,
        "seconds": seconds,
        "unchanged": unchanged,
        "features_are": cache.record.features_are,
    }
