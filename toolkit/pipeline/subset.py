"""kdtool build-subset: choosing rows and cutting bundles. Shapes: n rows, m rows kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import read_json
from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import Bundle, SubsetRecord, open_bundle, rows_fingerprint
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.dataset import PackedData, cache_command
from toolkit.formats.weights import weights_fingerprint
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.known_teachers import find_teacher
from toolkit.pipeline.score_sources import open_cache_of
from toolkit.pipeline.subset_request import Known, SubsetRequest, sees_network, what_is_known
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Picked, Pool
from toolkit.subset.cut import adds_to, cut_bundle, cut_targets


def build_subset(
    workspace: Workspace, frac: float, dataset: str = "fashion-mnist", method: str = "random", **more: Any
) -> dict[str, Any]:
    """One subset; `more` are keywords of `build_subsets`."""
    return build_subsets(workspace, [frac], dataset, [method], **more)[0]


def build_subsets(
    workspace: Workspace,
    fractions: Sequence[float],
    dataset: str = "fashion-mnist",
    methods: Sequence[str] = ("random",),
    score: str | None = None,
    teacher: str | None = None,
    balance: bool = True,
    nested: bool = False,
    min_per_class: int = 1,
    center: float | None = None,
    drop_hardest: float | None = None,
    seed: int = 0,
    name: str | None = None,
    index_only: bool = False,
    device: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    on_made: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Keeps round(fraction · n) rows by each method, for each fraction, and writes them as bundles, with the targets of
    every teacher cached on these data. Returns one result each, in that order.

    `score` names a score of the teacher's (default: el2n); features and logits are those of its cache, of the canonical
    view. With `nested` a smaller fraction is part of a larger one; every class keeps `min_per_class` rows or more.
    `center` is for window, `drop_hardest` for stratified and d2 (see `How`); `device` is where distances are computed
    (default: the GPU where there is one).

    The same settings give the same rows and the same files; a bundle that is there only gets the targets it lacks. All
    that was asked is checked before the first bundle is written. Each is told to `on_made` once it is there, and stays
    whatever comes after it. Raises UsageError or FailureError.
    """
    fractions, methods = list(dict.fromkeys(fractions)), list(dict.fromkeys(methods))
    wanted = [(method, fraction) for method in methods for fraction in fractions]
    how = (score, teacher, balance, nested, min_per_class, center, drop_hardest, seed, index_only, device)
    asked = SubsetRequest(methods, *how)
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
        known = what_is_known(stack, workspace, data, train.labels_n, asked)
        caches = _caches(stack, workspace, data, teacher)
        for number, (method, fraction) in enumerate(wanted, start=1):
            label = method if len(wanted) == 1 else f"{method} {number}/{len(wanted)}"
            shown = progress if METHODS[method].pick else silent  # ranking takes no time
            with shown(label, round(fraction * len(train)), "img") as tick:
                start_s = time.perf_counter()
                picked = asked.choose(method, known.pool, fraction, tick)
                select_s = time.perf_counter() - start_s
            record = _record(asked, method, fraction, picked, known, data, train, select_s)
            record = replace(record, name=_default_name(record, data.record.key) if name is None else name)
            folder = workspace.root / "subsets" / checked_name(record.name)
            results.append(_write(train, picked, record, folder, caches, force))
            on_made(results[-1])
    return results


def list_methods() -> dict[str, dict[str, Any]]:
    """Every method of selection: what it `needs` (scores, features, logits), its `cost` in n rows, m kept, d features,
    c classes and k neighbours, whether it gives `weights`, and its `paper`."""
    return {
        name: {"needs": list(method.needs), "cost": method.cost, "weights": method.weighted, "paper": method.paper}
        for name, method in METHODS.items()
    }


def random_beside(workspace: Workspace, made: dict[str, Any]) -> str | None:
    """The command that makes the random subset to compare with, given a result of `build_subsets`. None where it is
    there, of the same data, fraction and seed."""

    def essence(record: dict[str, Any]) -> tuple[Any, ...]:
        data = record.get("data")
        content = data.get("train_fingerprint") if isinstance(data, dict) else None
        return record.get("fraction"), record.get("seed"), content

    ours = read_json(Path(made["path"]) / "subset.json", "kdtool build-subset")
    for path in workspace.root.glob("subsets/*/subset.json"):
        try:
            found = read_json(path, "kdtool build-subset")
        except FailureError:  # a damaged one is nothing to compare with
            continue
        if found.get("method") == "random" and essence(found) == essence(ours):
            return None
    data = ours["data"]
    said = {"dataset": data["dataset"], "limit": data["limit"], "frac": f"{ours['fraction']:g}", "seed": ours["seed"]}
    usual = {"dataset": "fashion-mnist", "limit": None, "seed": 0}
    options = [f"--{option} {value}" for option, value in said.items() if option == "frac" or value != usual[option]]
    return " ".join(["kdtool build-subset", *options])


def _record(
    asked: SubsetRequest,
    method: str,
    fraction: float,
    picked: Picked,
    known: Known,
    data: PackedData,
    train: Beton,
    select_s: float,
) -> SubsetRecord:
    how, sees = asked.how(), sees_network(method)
    labels, counts = np.unique(train.labels_n[picked.rows_m], return_counts=True)
    return SubsetRecord(
        name="",  # it may be made of all that follows
        method=method,
        fraction=fraction,
        balance=asked.balance,
        seed=asked.seed,
        scored_by=known.scored_by if METHODS[method].needs_score else None,
        index_only=asked.index_only,
        rows=len(picked.rows_m),
        class_counts={str(label): int(count) for label, count in zip(labels, counts, strict=True)},
        rows_fingerprint=rows_fingerprint(picked.rows_m),
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
        features_of=known.features_of if sees else None,
        features_fingerprint=known.features_fingerprint if sees else None,
        weights_fingerprint=None if picked.weights_m is None else weights_fingerprint(picked.weights_m),
        select_s=round(select_s, 3),
    )


def _default_name(record: SubsetRecord, key: str) -> str:
    """Data, method, fraction and seed; of all else only what is not the default."""
    said = {
        f"-{(record.scored_by or '').split(' of ')[0]}": record.scored_by is not None,
        f"-c{record.center}": record.center not in (None, How.center),
        f"-b{record.drop_hardest}": record.drop_hardest not in (None, How.drop_hardest),
        "-global": not record.balance,
        "-nested": record.nested,
        f"-min{record.min_per_class}": record.min_per_class != 1,
        "-index": record.index_only,
    }
    ways = "".join(part for part, differs in said.items() if differs)
    return f"{key}-{record.method}{ways}-{record.fraction:g}-s{record.seed}"


def _write(
    train: Beton, picked: Picked, record: SubsetRecord, folder: Path, caches: list[CacheReader], force: bool
) -> dict[str, Any]:
    """Cuts the bundle, or adds the targets that it lacks; its result."""
    with only_writer(folder):
        if force or not (folder / "subset.json").is_file():
            cut_bundle(train, picked.rows_m, record, folder, caches, picked.weights_m)
        else:
            bundle = open_bundle(folder)
            _need_same(bundle, record)
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


def _need_same(bundle: Bundle, wanted: SubsetRecord) -> None:
    """Raises FailureError when what is there was made with other settings, naming them, or lost its weights."""
    found, asked = bundle.record.settings(), wanted.settings()
    different = [f"{name} {found[name]} → {asked[name]}" for name in asked if found[name] != asked[name]]
    if different:
        raise FailureError(
            f"{bundle.folder}: a subset with other settings ({', '.join(different)}). "
            "Give this one another --name, or pass --force to replace it"
        )
    _ = bundle.weights_m


def _caches(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str | None) -> list[CacheReader]:
    """The named teacher's cache, or every one of these data. Raises FailureError for a damaged one."""
    if teacher is not None:
        name, _ = find_teacher(workspace, teacher, data.record.dataset)
        return [open_cache_of(stack, workspace, data, name)]
    caches = []
    for path in sorted(workspace.root.glob(f"teachers/*/{workspace.cache('x', data.record.limit).name}")):
        cache = stack.enter_context(open_cache(path, cache_command(data.record, path.parent.name)))
        if cache.record.data_fingerprint == data.record.train_fingerprint:
            caches.append(cache)
    return caches
