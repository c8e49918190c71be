"""kdtool build-subset: choosing rows and cutting a bundle. Shapes: n rows, m rows kept."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.hashing import checked_seed, rng_for
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.bundle import Bundle, SubsetRecord, open_bundle, rows_fingerprint
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.dataset import PackedData, cache_command
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.known_teachers import find_teacher
from toolkit.selection import choose
from toolkit.selection.methods import METHODS
from toolkit.subset.cut import adds_to, cut_bundle, cut_targets

_SALT = 0x5E1EC7


def build_subset(
    workspace: Workspace,
    frac: float,
    dataset: str = "fashion-mnist",
    method: str = "random",
    score: str | None = None,
    teacher: str | None = None,
    balance: bool = True,
    seed: int = 0,
    name: str | None = None,
    index_only: bool = False,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Keeps round(frac · n) rows and writes them as a bundle, with the targets of every teacher cached on these data.

    `score` names one of the cache's scores for `hardest` and `easiest` (default: el2n). The same settings give the
    same rows and the same files; a bundle that is there only gets the targets it lacks. Raises UsageError or
    FailureError.
    """
    if method not in METHODS:
        raise unknown_name("method", method, list(METHODS))
    if not METHODS[method].needs_score and score is not None:
        raise UsageError(f"--score has no meaning for --method {method}. Leave it out, or use --method hardest")
    checked_seed(seed)
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    train = data.split("train")
    scores_n, scored_by = None, None
    if METHODS[method].needs_score:
        scores_n, scored_by = _score(workspace, data, teacher, score or "el2n")
    try:
        rows_m = choose(method, train.labels_n, frac, rng_for(seed, _SALT), scores_n, balance)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    by = "" if scored_by is None else f"-{scored_by.split(' of ')[0]}"
    unbalanced = "" if balance else "-global"
    indexed = "-index" if index_only else ""
    default = f"{data.record.key}-{method}{by}{unbalanced}{indexed}-{frac:g}-s{seed}"
    folder = workspace.root / "subsets" / checked_name(default if name is None else name)
    labels, counts = np.unique(train.labels_n[rows_m], return_counts=True)
    record = SubsetRecord(
        name=folder.name,
        method=method,
        fraction=frac,
        balance=balance,
        seed=seed,
        scored_by=scored_by,
        index_only=index_only,
        rows=len(rows_m),
        class_counts={str(label): int(count) for label, count in zip(labels, counts, strict=True)},
        rows_fingerprint=rows_fingerprint(rows_m),
        images_fingerprint="",  # known once they are written, as the bytes are
        bytes=0,
        data=data.record.to_record(),
        command=command_line(),
        created=now(),
        versions=versions(),
    )
    with only_writer(folder), ExitStack() as stack:
        caches = _caches(stack, workspace, data, teacher)
        if force or not (folder / "subset.json").is_file():
            record = cut_bundle(train, rows_m, record, folder, caches)
        else:
            bundle = open_bundle(folder)
            record = _same(bundle, record)
            for cache in caches:
                if adds_to(bundle, cache):
                    cut_targets(cache, bundle, train)
    return {
        "path": str(folder),
        "name": record.name,
        "rows": record.rows,
        "fraction": frac,
        "method": method,
        "bytes": record.bytes,
        "targets": open_bundle(folder).teachers(),
    }


def _score(workspace: Workspace, data: PackedData, teacher: str | None, score: str) -> tuple[np.ndarray, str]:
    """(the score of every row, its description) from the teacher's cache."""
    with ExitStack() as stack:
        name, _ = find_teacher(workspace, teacher, data.record.dataset)
        cache = _cache(stack, workspace, data, name)
        return cache.score(score), f"{score} of {cache.record.teacher}"


def _cache(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str) -> CacheReader:
    """The teacher's cache of these data. Raises FailureError when it is missing, damaged or of others."""
    made_by = cache_command(data.record, teacher)
    cache = stack.enter_context(open_cache(workspace.cache(teacher, data.record.limit), made_by))
    if cache.record.data_fingerprint != data.record.train_fingerprint:
        raise FailureError(
            f"{cache.path}: made from {cache.record.dataset} ({cache.record.data_fingerprint}), but the data are "
            f"{data.record.key} ({data.record.train_fingerprint}). Run: {made_by}"
        )
    return cache


def _same(bundle: Bundle, wanted: SubsetRecord) -> SubsetRecord:
    """The record that is there. Raises FailureError when it was made with other settings, naming them."""
    found, asked = bundle.record.settings(), wanted.settings()
    different = [f"{name} {found[name]} → {asked[name]}" for name in asked if found[name] != asked[name]]
    if different:
        raise FailureError(
            f"{bundle.folder}: a subset with other settings ({', '.join(different)}). "
            "Give this one another --name, or pass --force to replace it"
        )
    return bundle.record


def _caches(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str | None) -> list[CacheReader]:
    """The named teacher's cache, or every one of these data. Raises FailureError for a damaged one."""
    if teacher is not None:
        name, _ = find_teacher(workspace, teacher, data.record.dataset)
        return [_cache(stack, workspace, data, name)]
    caches = []
    for path in sorted(workspace.root.glob(f"teachers/*/{workspace.cache('x', data.record.limit).name}")):
        cache = stack.enter_context(open_cache(path, cache_command(data.record, path.parent.name)))
        if cache.record.data_fingerprint == data.record.train_fingerprint:
            caches.append(cache)
    return caches
