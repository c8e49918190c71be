"""kdtool verify-cache: the live teacher, asked again about a random sample of what is cached.

Shapes: n rows of a sample.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import checked_seed, rng_for
from toolkit.core.progress import Progress, silent
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache_request import Request, open_request
from toolkit.pipeline.foresee.caching import teacher_rate
from toolkit.pipeline.foresee.foreseen import Foreseen, may_be_dry
from toolkit.teacher.verify import BOUNDS, deviation

_SALT = 0x7E51F1
_MADE_OTHERWISE = ("precision", "encoding")  # a cache can be verified on a machine that would not have made it so


@may_be_dry
def verify_cache(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    dataset: str = defaults.DATASET,
    teacher: str | None = None,
    arch: str | None = None,
    width: int | None = None,
    class_map: Place | None = None,
    subset: str | None = None,
    samples: int = defaults.SAMPLES,
    seed: int = defaults.SEED,
    data_dir: Place | None = None,
    limit: int | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Asks the teacher again about `samples` random (row, slot) pairs of its cache, or of a subset's targets.

    `teacher`, `arch`, `width` and `class_map` are as in `cache_teacher`. Raises FailureError past the bounds, or where
    the cache is of another teacher, plan or data, and UsageError. With `dry_run` it is asked about a few rows, to see
    how long that takes: the result is `Foreseen.told`.
    """
    if samples < 1:
        raise UsageError(f"--samples must be at least 1, got {samples}")
    checked_seed(seed)
    request = open_request(
        Workspace.at(workspace),
        dataset,
        teacher,
        arch,
        width,
        views=1,
        subset=subset,
        class_map=as_path(class_map),
        data_dir=as_path(data_dir),
        limit=limit,
        device=device,
        precision=precision,
        threads=threads,
        download=not dry_run,
        progress=progress,
    )
    with open_cache(request.path, request.made_by) as cache:
        found = request.differences(cache)
        different = "; ".join(text for text in found if not text.startswith(_MADE_OTHERWISE))
        if different:
            raise FailureError(f"{request.path}: a cache of something else ({different}). Run: {request.made_by}")
        cache.check_views(request.data.split("train").sizes_n2[request.rows_n], cache.slots)
        if dry_run:
            rate, basis = teacher_rate(request)
            minutes = samples / rate / 60
            return Foreseen(request.path, False, 0, minutes, basis, teacher_passes=samples, makes=False).told()
        result = verified(request, cache, samples, seed, np.arange(cache.slots))
        stored = {"encoding": cache.record.encoding, "precision": cache.record.precision, "views": cache.slots}
        return {"path": str(request.path), "teacher": cache.record.teacher, **stored, **result}


def verified(request: Request, cache: CacheReader, samples: int, seed: int, among: np.ndarray) -> dict[str, Any]:
    """Asks about `samples` rows of the slots `among`, or of as many of them as there are samples: their Deviation.

    Raises FailureError when all of them together, or those of one slot, deviate from the live teacher by more than
    BOUNDS allow.
    """
    rng = rng_for(seed, _SALT)
    slots = rng.choice(among, min(len(among), samples), replace=False)
    rows = [
        np.sort(rng.integers(len(cache), size=len(part))) for part in np.array_split(np.arange(samples), len(slots))
    ]
    views = request.teacher.reader(request.data.split("train"), request.data.record.plan)
    live = [request.teacher.run(views, request.rows_n[at], int(slot))[0] for slot, at in zip(slots, rows, strict=True)]
    stored = [cache.encoded_rows(int(slot), at) for slot, at in zip(slots, rows, strict=True)]
    together = {name: np.concatenate([arrays[name] for arrays in stored]) for name in stored[0]}
    roughest = [name for name in BOUNDS if name in (cache.record.precision, request.record.precision)][-1]
    found = deviation(cache.encoding, together, np.concatenate(live), roughest)
    alone = [deviation(cache.encoding, arrays, of_slot, roughest) for arrays, of_slot in zip(stored, live, strict=True)]
    for where, one in [("", found), *((f" in slot {slot}", one) for slot, one in zip(slots, alone, strict=True))]:
        if not one.within:
            raise FailureError(
                f"{cache.path}: not what the teacher says{where}: logits deviate by {one.mean:.3g} on average and "
                f"{one.largest:.3g} at most over {samples} samples, where {roughest} allows {one.mean_bound:.3g} and "
                f"{one.largest_bound:.3g}. Run: {cache.made_by}"
            )
    return {"samples": samples, **asdict(found)}
