"""How kdtool score computes each score from a teacher's cache or the dynamics of its training.

Shapes: n rows, b rows of one block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.core.hashing import rng_for
from toolkit.core.progress import Progress
from toolkit.formats.cache import CacheReader
from toolkit.formats.dataset import DataRecord, cache_command
from toolkit.formats.dynamics import DynamicsReader, dynamics_command
from toolkit.pipeline.score_sources import Sources, lacking_features
from toolkit.scores import AT_INITIALISATION, DYNAMICS, FEATURES, SCORES, feature_score
from toolkit.scores.from_features import NEIGHBOURS, visits_of

_SALT = 0x5C03E5
_SEED = 0

Compute = Callable[[Progress], np.ndarray]


class Wanted(NamedTuple):
    """One score to have: its name, and what stands beside it."""

    name: str
    attributes: dict[str, Any]
    compute: Compute


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
    if sources.cache is not None and not sources.cache.has_features:
        possible = []
        skipped.append(str(lacking_features(sources.cache, f"each of {', '.join(FEATURES)}")))
    if sources.dynamics is not None:
        record = sources.dynamics.record
        possible += [key for key, score in DYNAMICS.items() if score.of == "training" and record.epochs >= score.least]
        possible.append(f"el2n@{max(1, round(record.epochs / 10))}")
        possible += [f"grand@{epoch}" for epoch in record.snapshots]
    if not possible and sources.cache is not None and sources.cache.record.imported:
        raise FailureError(f"scores: nothing to compute beside what the cache holds: {skipped[-1]}")
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
    """The error for a score of the pass that is not in the cache, for want of views or of features."""
    if SCORES[name].needs_features and not cache.has_features:
        return lacking_features(cache, f"score {name}")
    needs = SCORES[name].needs_views
    command = f"{cache_command(record, cache.record.teacher).removesuffix(' --force')} --views {needs}"
    if cache.record.imported:
        command = f"{cache.made_by}, with --logits for each of {needs} slots"
    return UsageError(f"score {name} needs {needs} cached views, {cache.path} holds {cache.slots}. Run: {command}")


def _one(sources: Sources, name: str, fingerprints: dict[str, str], device: str) -> Wanted:
    family, at = _split_name(name)
    of = "cache" if name in FEATURES else "dynamics" if family in DYNAMICS else None
    if of is None:
        raise unknown_name("score", name, computable())
    if family == "grand" and at == 0:
        raise UsageError(f"--score {name}: {AT_INITIALISATION}. Use an early snapshot: --snapshots 2 of train-teacher")
    if of in sources.missing:
        raise FailureError(f"--score {name}: {sources.missing[of]}")
    if of == "cache" and sources.cache is not None and not sources.cache.has_features:
        raise lacking_features(sources.cache, f"--score {name}")
    about, compute = _of_features(sources, name, device) if of == "cache" else _of_dynamics(sources, family, at)
    made_of = {"of": of, "source": fingerprints[of], "teacher_fingerprint": sources.teacher_fingerprint}
    return Wanted(name, {**about, **made_of}, compute)


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
        raise UsageError(f"--score {asked}: {dynamics.path} has epochs 1 to {record.epochs}. Name one of these")
    if score.of == "training" and epochs < score.least:
        there = f"{dynamics.path} has {epochs}" if at is None else f"{at} was named"
        raise UsageError(f"--score {asked}: {family} needs {score.least} epochs at least, {there}")
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
    score, found = DYNAMICS[family], []
    places = [f"seeds/{seed}/snapshots/{epoch}" for seed in range(len(dynamics.record.seeds))]
    for number, labels_b in enumerate(dynamics.blocks("labels")):
        arrays = [[dynamics.block(f"{place}/{need}", number) for place in places] for need in score.needs]
        found.append(score.compute(*arrays, labels_b))
        tick(len(labels_b))
    return np.concatenate([np.empty(0), *found])
