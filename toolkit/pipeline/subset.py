"""kdtool build-subset: choosing rows and cutting bundles. Shapes: n rows, m rows kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.locks import only_writer
from toolkit.core.memory import need, within_memory
from toolkit.core.progress import Progress, silent
from toolkit.core.sizes import in_words
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton, file_bytes
from toolkit.formats.bundle import Bundle, SubsetRecord, open_bundle, rows_fingerprint, subset_record
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.dataset import PackedData, cache_command
from toolkit.formats.weights import weights_fingerprint
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import Foreseen, already_there, may_be_dry
from toolkit.pipeline.foresee.trials import SECONDS, copied_bytes_per_s, seconds_of
from toolkit.pipeline.known_teachers import PRETRAINED
from toolkit.pipeline.random_beside import essence, random_command, random_subsets
from toolkit.pipeline.score_sources import open_cache_of, teacher_of
from toolkit.pipeline.subset_request import Known, SubsetRequest, sees_network, what_is_known
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Picked, Pool
from toolkit.subset.cut import adds_to, cut_bundle, cut_targets

_COPIES = 2  # of all rows' features or logits in float32: as they are read, and as the method works on them
_Choose = Callable[[], tuple[Picked, SubsetRecord]]


def build_subset(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    frac: float,
    method: str = defaults.METHOD,
    score: str | None = None,
    teacher: str | None = None,
    balance: bool = defaults.BALANCE,
    nested: bool = False,
    min_per_class: int = defaults.MIN_PER_CLASS,
    center: float | None = None,
    drop_hardest: float | None = None,
    device: str | None = None,
    seed: int = defaults.SEED,
    name: str | None = None,
    index_only: bool = False,
    dataset: str = defaults.DATASET,
    data_dir: Place | None = None,
    limit: int | None = None,
    memory_limit: str | int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Keeps round(frac · n) rows by `method`, one of `list_methods`, and writes them as a bundle, with the targets of
    every teacher cached on these data, or of the one named. One that is there, of the same settings, only gets the
    targets it lacks.

    `score` names a score of the teacher's, for methods that rank (default: el2n); features and logits are those of its
    cache. `balance` keeps the classes' shares, `min_per_class` so many rows of each at least; with `nested` a smaller
    fraction is part of a larger one. `center` is for window, `drop_hardest` for stratified and d2; `device` is where
    distances are computed. With `index_only` the images stay in the packed data. With `dry_run` nothing is
    written: the result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    [made] = build_subsets(
        Workspace.at(workspace),
        [frac],
        dataset,
        [method],
        score=score,
        teacher=teacher,
        balance=balance,
        nested=nested,
        min_per_class=min_per_class,
        center=center,
        drop_hardest=drop_hardest,
        device=device,
        seed=seed,
        name=name,
        index_only=index_only,
        data_dir=as_path(data_dir),
        limit=limit,
        memory_limit=memory_limit,
        force=force,
        dry_run=dry_run,
        progress=progress,
    )
    return made


@within_memory
@may_be_dry
def build_subsets(
    workspace: Workspace,
    fractions: Sequence[float],
    dataset: str = defaults.DATASET,
    methods: Sequence[str] = (defaults.METHOD,),
    score: str | None = None,
    teacher: str | None = None,
    balance: bool = defaults.BALANCE,
    nested: bool = False,
    min_per_class: int = defaults.MIN_PER_CLASS,
    center: float | None = None,
    drop_hardest: float | None = None,
    seed: int = defaults.SEED,
    name: str | None = None,
    index_only: bool = False,
    device: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    memory_limit: str | int | None = None,
    force: bool = False,
    dry_run: bool = False,
    timed: bool = True,
    progress: Progress = silent,
    on_made: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Keeps round(fraction · n) rows by each method, for each fraction, and writes them as bundles, with the targets of
    every teacher cached on these data. Returns one result each, in that order.

    `score` names a score of the teacher's (default: el2n); features and logits are those of its cache, of the canonical
    view. With `nested` a smaller fraction is part of a larger one; every class keeps `min_per_class` rows or more.
    `center` is for window, `drop_hardest` for stratified and d2 (see `How`); `device` is where distances are computed
    (default: the GPU where there is one).

    The same settings give the same rows and the same files; a bundle that is there only gets the targets it lacks, and
    its rows are not chosen again where all that its method looked at is as it was. All that was asked is checked before
    the first bundle is written. Each is told to `on_made` once it is there, and stays whatever comes after it.
    `random_beside` in a result is the command of the random subset to compare with, None where it is there or asked
    for. With `dry_run` nothing is written: a result is `Foreseen.told`, with its `name` and, where the bundle is there,
    the teachers whose targets it `lacks`, in part or as they are now; unless `timed`, its minutes are 0. Raises
    UsageError or FailureError.
    """
    fractions, methods = list(dict.fromkeys(fractions)), list(dict.fromkeys(methods))
    wanted = [(method, fraction) for method in methods for fraction in fractions]
    asked = SubsetRequest(
        methods=methods,
        score=score,
        teacher=teacher,
        balance=balance,
        nested=nested,
        min_per_class=min_per_class,
        center=center,
        drop_hardest=drop_hardest,
        seed=seed,
        index_only=index_only,
        device=device,
    )
    if name is not None and len(wanted) > 1:
        raise UsageError(f"--name {name}: names one subset, and {len(wanted)} were asked for. Leave it out")
    if name is not None:
        checked_name(name)
    if any(sees_network(method) for method in methods):
        from toolkit.pipeline.runtime import compute_on  # torch: labels and scores do without

        asked = replace(asked, device=str(compute_on(device or "auto", "float32").device))
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    train = data.split("train")
    for fraction in fractions:  # chance costs nothing, and meets every refusal that fraction and labels can bring
        asked.choose("random", Pool(train.labels_n), fraction)
    results = []
    with ExitStack() as stack:
        labels_n = train.labels_n.astype(np.int32)  # classes are numbered by far fewer bits
        known = what_is_known(stack, workspace, data, labels_n, asked)
        caches = _caches(stack, workspace, data, teacher)
        records = [_record(asked, method, fraction, known, data, name) for method, fraction in wanted]
        folders = [workspace.root / "subsets" / checked_name(record.name) for record in records]
        if dry_run:
            foresee = partial(_foreseen, data, asked, known, caches, force, timed)
            return [foresee(folder, record) for folder, record in zip(folders, records, strict=True)]
        if force or not all(map(_is_there, folders, records)):
            _ = known.pool  # damage in it is told before anything is written
        randoms = None if "random" in methods else random_subsets(workspace)
        for number, (record, folder) in enumerate(zip(records, folders, strict=True), start=1):
            label = record.method if len(wanted) == 1 else f"{record.method} {number}/{len(wanted)}"
            choose = partial(_choose, asked, known, record, label, progress)
            result = _write(train, record, folder, choose, caches, force)
            missing = randoms is not None and essence(vars(record)) not in randoms
            result["random_beside"] = random_command(workspace, record) if missing else None
            results.append(result)
            on_made(result)
    return results


def list_methods() -> dict[str, dict[str, Any]]:
    """Every method of selection: what it `needs` (scores, features, logits), its `cost` in n rows, m kept, d features,
    c classes and k neighbours, whether it gives `weights`, and its `paper`."""
    return {
        name: {"needs": list(method.needs), "cost": method.cost, "weights": method.weighted, "paper": method.paper}
        for name, method in METHODS.items()
    }


def _record(
    asked: SubsetRequest, method: str, fraction: float, known: Known, data: PackedData, name: str | None
) -> SubsetRecord:
    """What is known before rows are chosen; `_choose` fills in the rest."""
    how, sees, needs_score = asked.how(), sees_network(method), METHODS[method].needs_score
    cache = known.cache.record if known.cache and sees else None
    record = SubsetRecord(
        name=name or "",
        method=method,
        fraction=fraction,
        balance=asked.balance,
        seed=asked.seed,
        scored_by=known.scored_by if needs_score else None,
        index_only=asked.index_only,
        rows=0,
        class_counts={},
        rows_fingerprint="",
        images_fingerprint="",  # known once they are written, as the bytes are
        bytes=0,
        data=data.record.to_record(),
        command=command_line(),
        created=now(),
        versions=versions(),
        nested=asked.nested,
        min_per_class=asked.min_per_class,
        center=how.center if "center" in METHODS[method].settings else None,
        drop_hardest=how.drop_hardest if "drop_hardest" in METHODS[method].settings else None,
        features_of=cache.teacher if cache else None,
        features_fingerprint=cache.teacher_fingerprint if cache else None,
        scores_fingerprint=known.scores_fingerprint if needs_score else None,
        cache_fingerprint=known.cache_fingerprint(method),
    )
    return (
        record if name is not None else replace(record, name=_default_name(record, data.record.key.replace(":", "-")))
    )


def _choose(
    asked: SubsetRequest, known: Known, record: SubsetRecord, label: str, progress: Progress
) -> tuple[Picked, SubsetRecord]:
    """The rows, and the record that tells of them."""
    labels_n = known.labels_n
    _need_memory(known, record)
    shown = progress if METHODS[record.method].pick else silent  # ranking takes no time
    with shown(label, round(record.fraction * len(labels_n)), "img") as tick:
        start_s = time.perf_counter()
        picked = asked.choose(record.method, known.pool, record.fraction, tick)
        select_s = time.perf_counter() - start_s
    labels, counts = np.unique(labels_n[picked.rows_m], return_counts=True)
    return picked, replace(
        record,
        rows=len(picked.rows_m),
        class_counts={str(label): int(count) for label, count in zip(labels, counts, strict=True)},
        rows_fingerprint=rows_fingerprint(picked.rows_m),
        weights_fingerprint=None if picked.weights_m is None else weights_fingerprint(picked.weights_m),
        select_s=round(select_s, 3),
    )


def _need_memory(known: Known, record: SubsetRecord) -> None:
    """Raises FailureError where a method that looks at all rows at once would need more than --memory-limit."""
    if record.balance or not sees_network(record.method):
        return
    pool, needs = known.pool, METHODS[record.method].needs
    tables = {"features": pool.features_nd, "logits": pool.logits_nc}
    held = sum(
        _COPIES * np.dtype(np.float32).itemsize * len(pool) * table.shape[1]
        for name, table in tables.items()
        if name in needs
    )
    need(
        held, f"--no-balance --method {record.method} on {len(pool):,} rows", "Leave --no-balance out, or give it more"
    )


def _default_name(record: SubsetRecord, key: str) -> str:
    """Data, method, fraction and seed; of all else only what is not the default."""
    usual = PRETRAINED.get(record.data["dataset"])
    said = {
        f"-{(record.scored_by or '').split(' of ')[0]}": record.scored_by is not None,
        f"-by-{record.chosen_by}": record.chosen_by not in (None, usual),
        f"-c{record.center}": record.center not in (None, How.center),
        f"-b{record.drop_hardest}": record.drop_hardest not in (None, How.drop_hardest),
        "-global": not record.balance,
        "-nested": record.nested,
        f"-min{record.min_per_class}": record.min_per_class != 1,
        "-index": record.index_only,
    }
    ways = "".join(part for part, differs in said.items() if differs)
    return f"{key}-{record.method}{ways}-{record.fraction:g}-s{record.seed}"


def _is_there(folder: Path, wanted: SubsetRecord) -> bool:
    try:
        return subset_record(folder).chooses_as(wanted)
    except FailureError:  # none, or a damaged one, which is told when its turn comes
        return False


def _foreseen(
    data: PackedData,
    asked: SubsetRequest,
    known: Known,
    caches: list[CacheReader],
    force: bool,
    timed: bool,
    folder: Path,
    wanted: SubsetRecord,
) -> dict[str, Any]:
    """What is to be made of one subset: all of it, or the targets that it lacks."""
    train, there = data.split("train"), _is_there(folder, wanted) and not force
    lacking = [cache for cache in caches if not there or adds_to(open_bundle(folder), cache)]
    rows = round(wanted.fraction * len(train))
    cut = 0 if there or wanted.index_only else file_bytes(rows, float(train.bytes_n.mean()))
    targets = sum((cache.slots * rows + data.record.test_rows) * cache.bytes_per_view for cache in lacking)
    lacks = [cache.record.teacher for cache in lacking] if there else []
    more = {"name": wanted.name, "rows": rows, "lacks": lacks}
    if there and not lacks:
        return already_there(folder, **more)
    seconds, basis = 0.0, "not timed"
    if timed:
        rate = copied_bytes_per_s(train.path)
        basis = f"{in_words(rate)} a second copied here"
        seconds = (cut + targets) / rate
        if not there:
            seconds += seconds_of(lambda progress: _choose(asked, known, wanted, wanted.method, progress))
            basis += f", and the choosing begun, for {SECONDS:g} s at most"
    return Foreseen(folder, False, cut + targets, seconds / 60, basis, more=more).told()


def _write(
    train: Beton, wanted: SubsetRecord, folder: Path, choose: _Choose, caches: list[CacheReader], force: bool
) -> dict[str, Any]:
    """Chooses and cuts the bundle, or adds the targets that the one there lacks; its result."""
    with only_writer(folder):
        if force or not (folder / "subset.json").is_file():
            picked, record = choose()
            cut_bundle(train, picked.rows_m, record, folder, caches, picked.weights_m)
        else:
            bundle = open_bundle(folder)
            record = _checked(bundle, wanted, choose)
            for cache in caches:
                if adds_to(bundle, cache):
                    cut_targets(cache, bundle, train)
        bundle = open_bundle(folder)
    return {
        "path": str(folder),
        "name": record.name,
        "rows": record.rows,
        "fraction": record.fraction,
        "method": record.method,
        "bytes": bundle.record.bytes,
        "targets": bundle.teachers(),
        "select_s": record.select_s,
    }


def _checked(bundle: Bundle, wanted: SubsetRecord, choose: _Choose) -> SubsetRecord:
    """The record of the rows wanted, chosen again only where what is there can't tell that they would be the same.

    Raises FailureError when what is there was made with other settings, naming them, or lost its weights."""
    found = bundle.record
    _need_same(bundle, found.asked(), wanted.asked())  # told before minutes of choosing
    if found.chooses_as(wanted):
        record = found
    else:
        _, record = choose()
        _need_same(bundle, found.settings(), record.settings())
    _ = bundle.weights_m
    return record


def _need_same(bundle: Bundle, found: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [f"{name} {found[name]} → {asked[name]}" for name in asked if found[name] != asked[name]]
    if different:
        raise FailureError(
            f"{bundle.folder}: a subset with other settings ({', '.join(different)}). "
            "Give this one another --name, or pass --force to replace it"
        )


def _caches(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str | None) -> list[CacheReader]:
    """The named teacher's cache, where there is one, or every one of these data. Raises FailureError for a damaged one,
    and for a named teacher's of other data."""
    limit = data.record.limit
    if teacher is not None:
        name = teacher_of(workspace, teacher, data.record)
        there = workspace.cache(name, limit).is_file()
        return [open_cache_of(stack, workspace, data, name)] if there else []
    caches = []
    for path in sorted(workspace.root.glob(f"teachers/*/{workspace.cache('x', limit).name}")):
        cache = stack.enter_context(open_cache(path, cache_command(data.record, path.parent.name)))
        if cache.record.data_fingerprint == data.record.train_fingerprint:
            caches.append(cache)
    return caches
