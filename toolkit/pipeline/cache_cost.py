"""kdtool cache-teacher --dry-run: what a cache would cost, and how many students repay it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any, NamedTuple

from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import RECIPES
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache import new_bytes, usable, work_for
from toolkit.pipeline.cache_request import Request, open_request
from toolkit.pipeline.foresee.caching import teacher_rate
from toolkit.pipeline.foresee.foreseen import Foreseen, may_be_dry

FRACTIONS = (0.05, 0.1, 0.3, 0.5, 1.0)


@may_be_dry
def cache_cost(
    workspace: Workspace, fresh: bool, dry_run: bool = True, progress: Progress = silent, **asked: Any
) -> dict[str, Any]:
    """Passes still to run, bytes on disk, minutes (measured on a few batches here), and the students that repay them.

    A live teacher runs once for each image that a student sees: rows × epochs of the recipe `fast`. `students_to_repay`
    gives, by the fraction of the rows kept, how many such students cost the teacher as many passes as the cache; of a
    subset, only its own. `fresh` and `asked` are arguments of `open_request`. The result is `Foreseen.told`. Raises
    UsageError or FailureError; writes nothing.
    """
    request = open_request(workspace, fresh=fresh, download=False, progress=progress, **asked)
    record, rows = request.record, len(request.rows_n)
    whole = record.slots * rows + request.data.record.test_rows
    todo = _Left(whole, whole, new_bytes(request, True, whole)) if fresh else _still_to_do(request)
    rate, basis = teacher_rate(request) if todo.passes else (math.inf, "nothing is left to run")
    fractions = (1.0,) if record.kind == "targets" else FRACTIONS
    epochs = RECIPES["fast"].epochs
    more = {
        "rows": rows,
        "views": record.slots,
        "encoding": record.encoding,
        "passes": todo.passes,
        "passes_of_the_whole_cache": whole,
        "bytes_per_view": request.encoding.bytes_per_view,
        "images_per_s": None if math.isinf(rate) else rate,
        "epochs_of_a_student": epochs,
        "students_to_repay": {f"{f:g}": _students(whole, f, rows, epochs) for f in fractions},
    }
    minutes = todo.passes / rate / 60
    there = not todo.images
    return Foreseen(request.path, there, todo.bytes, minutes, basis, teacher_passes=todo.passes, more=more).told()


class _Left(NamedTuple):
    """Images whose logits are still to be written, those of them that the teacher has yet to see, and what is written
    with them."""

    images: int
    passes: int
    bytes: int


def _still_to_do(request: Request) -> _Left:
    with ExitStack() as stack:
        old = usable(stack, request)
        if old is not None and old.slots >= request.record.slots:
            return _Left(0, 0, 0)  # whatever unfinished work lies beside it
        work = work_for(request, old)
        return _Left(work.images, work.missing_images, new_bytes(request, old is None, work.images))


def _students(passes: int, fraction: float, rows: int, epochs: int) -> int:
    """How many students on round(fraction · rows) rows, as build-subset keeps them, are shown `passes` images."""
    return -(-passes // (max(1, round(fraction * rows)) * epochs))
