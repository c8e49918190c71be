"""kdtool cache-teacher --dry-run: what a cache would cost, and how many students repay it."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from toolkit.core.recipes import RECIPES
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache import usable, work_for
from toolkit.pipeline.cache_request import Request, open_request

FRACTIONS = (0.05, 0.1, 0.3, 0.5, 1.0)
_TIMED_BATCHES = 4


def cache_cost(workspace: Workspace, fresh: bool, **asked: Any) -> dict[str, Any]:
    """Passes still to run, bytes on disk, minutes (measured on a few batches here), and the students that repay them.

    A live teacher runs once for each image that a student sees: rows × epochs of the recipe `fast`. `students_to_repay`
    gives, by the fraction of the rows kept, how many such students cost the teacher as many passes as the cache; of a
    subset, only its own. `fresh` and `asked` are arguments of `open_request`. Raises UsageError or FailureError; writes
    no cache.
    """
    request = open_request(workspace, fresh=fresh, download=False, **asked)
    record, rows = request.record, len(request.rows_n)
    whole = record.slots * rows + request.data.record.test_rows
    images, missing = (whole, whole) if fresh else _still_to_do(request)
    rate = _images_per_s(request) if missing else math.inf
    fractions = (1.0,) if record.kind == "targets" else FRACTIONS
    epochs = RECIPES["fast"].epochs
    return {
        "path": str(request.path),
        "rows": rows,
        "views": record.slots,
        "encoding": record.encoding,
        "passes": missing,
        "passes_of_the_whole_cache": whole,
        "bytes": images * request.encoding.bytes_per_view,
        "bytes_per_view": request.encoding.bytes_per_view,
        "images_per_s": None if math.isinf(rate) else rate,
        "minutes": missing / rate / 60,
        "epochs_of_a_student": epochs,
        "students_to_repay": {f"{f:g}": _students(whole, f, rows, epochs) for f in fractions},
    }


def _still_to_do(request: Request) -> tuple[int, int]:
    """(images whose logits are still to be written, and those of them that the teacher has yet to see)"""
    with ExitStack() as stack:
        old = usable(stack, request)
        if old is not None and old.slots >= request.record.slots:
            return 0, 0  # whatever unfinished work lies beside it
        work = work_for(request, old)
        return work.images, work.missing_images


def _students(passes: int, fraction: float, rows: int, epochs: int) -> int:
    """How many students on round(fraction · rows) rows, as build-subset keeps them, are shown `passes` images."""
    return -(-passes // (max(1, round(fraction * rows)) * epochs))


def _images_per_s(request: Request) -> float:
    """The teacher's rate on real rows, drawn as they will be, after a batch that warms it up."""
    views = request.teacher.reader(request.data.split("train"), request.data.record.plan)
    batch = min(request.teacher.batch_size, len(request.rows_n))
    at_n = np.resize(request.rows_n, _TIMED_BATCHES * batch)
    request.teacher.run(views, at_n[:batch], 0)
    start_s = time.perf_counter()
    request.teacher.run(views, at_n, 0)
    return len(at_n) / (time.perf_counter() - start_s)
