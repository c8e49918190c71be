"""What kdtool score computes from: a teacher's cache and the dynamics of its training, found and checked; and how.

Shapes: n rows, b rows of one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.hashing import rng_for
from toolkit.core.progress import Progress
from toolkit.formats.cache import CacheReader, open_cache
from toolkit.formats.dataset import DataRecord, PackedData, cache_command
from toolkit.formats.dynamics import DynamicsReader, dynamics_command, open_dynamics
from toolkit.formats.scores_file import contents_fingerprint
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.known_teachers import PRETRAINED, find_teacher
from toolkit.scores import AT_INITIALISATION, DYNAMICS, FEATURES, SCORES, feature_score
from toolkit.scores.from_features import NEIGHBOURS, visits_of

_SALT = 0x5C03E5
_SEED = 0

Compute = Callable[[Progress], np.ndarray]


class Wanted(NamedTuple):
    """One score to have: its name, the file it is computed `of` (cache or dynamics), and what stands beside it."""

    name: str
    of: str
    attributes: dict[str, Any]
    compute: Compute


@dataclass(frozen=True)
class Sources:
    """What a teacher left: its cache and its dynamics, where they are there and of all of these data's rows.

    `missing` says of either that is not, in one line, why and what to run.
    """

    data: PackedData
    teacher: str
    cache: CacheReader | None
    dynamics: DynamicsReader | None
    missing: dict[str, str]

    def fingerprints(self) -> dict[str, str]:
        found = {}
        if self.cache is not None:
            found["cache"] = contents_fingerprint(self.cache, "features", "labels")
        if self.dynamics is not None:
            found["dynamics"] = self.dynamics.fingerprint()
        return found


def open_sources(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str) -> Sources:
    """Raises FailureError for files that are damaged, a cache of other data, and where there is nothing at all."""
    record, missing = data.record, {}
    cache_path, path = workspace.cache(teacher, record.limit), workspace.teacher(teacher) / "dynamics.h5"
    cache = open_cache_of(stack, workspace, data, teacher) if cache_path.is_file() else None
    if cache is None:
        missing["cache"] = f"{cache_path}: not found. Run: {cache_command(record, teacher).removesuffix(' --force')}"
    dynamics = None
    if not path.is_file():
        missing["dynamics"] = f"{path}: not found. Run: {_train_command(record)}"
    else:
        dynamics = stack.enter_context(open_dynamics(path))
        unfit = _unfit(dynamics, data)
        if unfit:
            missing["dynamics"] = f"{path}: {unfit}. Run: {_train_command(record)}"
            dynamics = None
    if cache is None and dynamics is None:
        raise FailureError(f"nothing to score from: {missing['cache'] if not path.is_file() else missing['dynamics']}")
    return Sources(data, teacher, cache, dynamics, missing)


def _unfit(dynamics: DynamicsReader, data: PackedData) -> str:
    """Why the dynamics don't tell about every training row, or nothing."""
    found, wanted = dynamics.record, data.record
    rows_n, subset = dynamics.rows_n, found.settings.get("subset")
    if subset is not None or not np.array_equal(rows_n, np.arange(wanted.train_rows)):
        if found.dataset == wanted.dataset:
            of = "a subset" if subset is None else f"the subset {subset}"
            return f"recorded on {of}, {len(rows_n):,} rows of {wanted.train_rows:,}; scores need every row"
    elif found.data_fingerprint == wanted.train_fingerprint:
        return ""
    return (
        f"recorded on {found.dataset} ({found.data_fingerprint}), but the data are {wanted.key} "
        f"({wanted.train_fingerprint})"
    )


def teacher_if_any(workspace: Workspace, teacher: str | None, record: DataRecord) -> str | None:
    """The teacher's name, or None where none was named and no one comes with kdtool."""
    if teacher is None and record.dataset not in PRETRAINED:
        return None
    return teacher_of(workspace, teacher, record)


def teacher_of(workspace: Workspace, teacher: str | None, record: DataRecord) -> str:
    """The teacher's name. What it left behind is enough: its weights may be gone."""
    if teacher is not None and not Path(teacher).is_file():
        left = (workspace.cache(teacher, record.limit), workspace.teacher(teacher) / "dynamics.h5")
        if any(path.is_file() for path in left):
            return teacher
    return find_teacher(workspace, teacher, record.dataset)[0]


def open_cache_of(stack: ExitStack, workspace: Workspace, data: PackedData, teacher: str) -> CacheReader:
    """The teacher's cache of these data. Raises FailureError when it is missing, damaged or of others."""
    made_by = cache_command(data.record, teacher)
    cache = stack.enter_context(open_cache(workspace.cache(teacher, data.record.limit), made_by))
    if cache.record.data_fingerprint != data.record.train_fingerprint:
        raise FailureError(
            f"{cache.path}: made from {cache.record.dataset} ({cache.record.data_fingerprint}), but the data are "
            f"{data.record.key} ({data.record.train_fingerprint}). Run: {made_by}"
        )
    return cache


def options_of(record: DataRecord) -> str:
    return f"--dataset {record.dataset}" + ("" if record.limit is None else f" --limit {record.limit}")


def score_command(record: DataRecord, teacher: str) -> str:
    return f"kdtool score {options_of(record)} --teacher {teacher} --force"


def _train_command(record: DataRecord) -> str:
    return f"kdtool train-teacher {options_of(record)} --name NAME, then kdtool score --teacher NAME"


def _split_name(name: str) -> tuple[str, int | None]:
    """("el2n", 5) of el2n@5, and ("aum", None) of aum. Raises UsageError for what is no number after the @."""
    family, at, number = name.partition("@")
    if not at:
        return name, None
    if not re.fullmatch(r"\d{1,9}", number, re.ASCII):
        raise UsageError(f"--score {name}: after the @ stands an epoch, such as {family}@5")
    return family, int(number)


def wanted_scores(
    sources: Sources, names: tuple[str, ...], fingerprints: dict[str, str], device: str
) -> tuple[list[Wanted], list[str]]:
    """(what to have, what was left out and why). Without names, all that the sources allow.

    Raises UsageError or FailureError for a name that they don't allow."""
    if names:
        asked = [key for key in dict.fromkeys(names) if not _is_of_pass(sources, key)]
        return [_one(sources, key, fingerprints, device) for key in asked], []
    skipped = list(sources.missing.values())
    possible = list(FEATURES) if sources.cache is not None else []
    if sources.dynamics is not None:
        record = sources.dynamics.record
        possible += [key for key, score in DYNAMICS.items() if score.of == "training" and record.epochs >= score.least]
        possible.append(f"el2n@{max(1, round(record.epochs / 10))}")
        possible += [f"grand@{epoch}" for epoch in record.snapshots]
    return [_one(sources, key, fingerprints, device) for key in possible], skipped


def _is_of_pass(sources: Sources, name: str) -> bool:
    """Whether the name is of a score that cache-teacher writes. Raises FailureError or UsageError when it did not."""
    if name not in SCORES:
        return False
    if sources.cache is None:
        raise FailureError(sources.missing["cache"])
    if name not in sources.cache.scores:
        raise lacking_views(sources.cache, name, sources.data.record)
    return True


def lacking_views(cache: CacheReader, name: str, record: DataRecord) -> UsageError:
    command = cache_command(record, cache.record.teacher).removesuffix(" --force")
    needs = SCORES[name].needs_views
    return UsageError(
        f"score {name} needs {needs} cached views, {cache.path} holds {cache.slots}. Run: {command} --views {needs}"
    )


def _one(sources: Sources, name: str, fingerprints: dict[str, str], device: str) -> Wanted:
    family, at = _split_name(name)
    of = "cache" if name in FEATURES else "dynamics" if family in DYNAMICS else None
    if of is None:
        raise unknown_name("score", name, computable())
    if family == "grand" and at == 0:
        raise UsageError(f"--score {name}: {AT_INITIALISATION}. Use an early snapshot: --snapshots 2 of train-teacher")
    if of in sources.missing:
        raise FailureError(f"--score {name}: {sources.missing[of]}")
    about, compute = _of_features(sources, name, device) if of == "cache" else _of_dynamics(sources, family, at)
    return Wanted(name, of, {**about, "of": of, "source": fingerprints[of]}, compute)


def computable() -> list[str]:
    """The names of all scores, as they are asked for."""
    return [*SCORES, *(name if score.of == "training" else f"{name}@E" for name, score in DYNAMICS.items()), *FEATURES]


def _of_features(sources: Sources, name: str, device: str) -> tuple[dict[str, Any], Compute]:
    cache = sources.cache
    assert cache is not None
    rows, clusters = len(cache), min(cache.record.classes, len(cache))
    # how many rows a score goes through in all, and what it was computed with
    visits, parameters = {
        "prototype": (visits_of(rows, clusters), {"clusters": clusters, "seed": _SEED}),
        "centroid": (2 * rows, {}),
        "knn_distance": (rows, {"k": NEIGHBOURS}),
    }[name]

    def compute(progress: Progress) -> np.ndarray:
        where = "cpu"
        if name == "knn_distance":
            from toolkit.pipeline.runtime import compute_on  # torch, which no other score needs

            where = str(compute_on(device).device)
        with progress(f"score {name}", visits, "rows") as tick:
            features_nd, labels_n = cache.features_mapped(), cache.read("labels")
            return feature_score(name, features_nd, labels_n, clusters, rng_for(_SEED, _SALT), where, tick)

    score = FEATURES[name]
    return {"definition": score.definition, "paper": score.paper, **parameters}, compute


def _of_dynamics(sources: Sources, family: str, at: int | None) -> tuple[dict[str, Any], Compute]:
    """Raises UsageError for an epoch or a snapshot that was not recorded."""
    dynamics, score = sources.dynamics, DYNAMICS[family]
    assert dynamics is not None
    record = dynamics.record
    epochs = record.epochs if at is None else at
    asked = family if at is None else f"{family}@{at}"
    if score.of != "training" and at is None:
        raise UsageError(f"--score {family} is of one epoch: name it, such as {family}@2")
    if not 1 <= epochs <= record.epochs:
        raise UsageError(f"--score {asked}: {dynamics.path} has epochs 1 to {record.epochs}")
    if score.of == "training" and epochs < score.least:
        raise UsageError(f"--score {asked} needs {score.least} epochs at least, {dynamics.path} has {record.epochs}")
    if score.of == "snapshot" and at not in record.snapshots:
        found = ", ".join(map(str, record.snapshots)) or "none"
        command = dynamics_command(replace(record, snapshots=sorted({*record.snapshots, epochs})))
        raise UsageError(f"--score {asked}: {dynamics.path} has snapshots of epochs: {found}. Run: {command}")
    definition = score.definition
    if at is not None:
        definition += f"; the first {at} epochs" if score.of == "training" else f"; epoch {at}"
    about = {"definition": definition, "paper": score.paper, **score.parameters}
    about |= {"seeds": len(record.seeds), "epochs" if score.of == "training" else "epoch": epochs}

    def compute(progress: Progress) -> np.ndarray:
        with progress(f"score {asked}", record_rows, "rows") as tick:
            if score.of == "snapshot":
                return _of_snapshot(dynamics, family, epochs, tick)
            return _of_epochs(dynamics, family, epochs, tick)

    record_rows = sources.data.record.train_rows
    return about, compute


def _of_epochs(dynamics: DynamicsReader, family: str, epochs: int, tick: Callable[[int], None]) -> np.ndarray:
    """Block by block: every epoch of all rows, in float64, would be more than the cache."""
    score, found = DYNAMICS[family], []
    for number, labels_b in enumerate(dynamics.blocks("labels")):
        found.append(score.compute(*(_recorded(dynamics, need, score.of, epochs, number) for need in score.needs)))
        tick(len(labels_b))
    return np.concatenate([np.empty(0), *found])


def _recorded(dynamics: DynamicsReader, name: str, of: str, epochs: int, number: int) -> Iterator[np.ndarray]:
    """One block, seed by seed: of a training the first `epochs`, (epochs, b); of an epoch its own values, (b,)."""
    for seed in range(len(dynamics.record.seeds)):
        place = f"seeds/{seed}/epochs"
        if of == "epoch":
            yield dynamics.block(f"{place}/{epochs}/{name}", number)
        else:
            yield np.stack([dynamics.block(f"{place}/{epoch}/{name}", number) for epoch in range(1, epochs + 1)])


def _of_snapshot(dynamics: DynamicsReader, family: str, epoch: int, tick: Callable[[int], None]) -> np.ndarray:
    """Block by block: the logits of many classes are as large as a cache's."""
    score, labels_n, found = DYNAMICS[family], dynamics.labels_n, []
    places = [f"seeds/{seed}/snapshots/{epoch}" for seed in range(len(dynamics.record.seeds))]
    start = 0
    for number, _ in enumerate(dynamics.blocks("labels")):
        arrays = [[dynamics.block(f"{place}/{need}", number) for place in places] for need in score.needs]
        rows = len(arrays[0][0])
        found.append(score.compute(*arrays, labels_n[start : start + rows]))
        start += rows
        tick(rows)
    return np.concatenate([np.empty(0), *found])
