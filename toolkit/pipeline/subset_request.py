"""What build-subset is asked for, checked before any work, and what its methods may look at.

Shapes: n rows, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from toolkit.core import defaults
from toolkit.core.errors import KdtoolError, UsageError, unknown_name
from toolkit.core.hashing import checked_seed, fingerprint, rng_for
from toolkit.formats.cache import CacheReader
from toolkit.formats.dataset import PackedData, cache_command
from toolkit.formats.encodings import DecodedRows, FullLogits, TopLogits
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.found_scores import find_score
from toolkit.pipeline.score_sources import lacking_features, open_cache_of, teacher_of
from toolkit.selection import checked, choose
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Picked, Pool

_SALT = 0x5E1EC7
_SEES = {"features", "logits"}

Tick = Callable[[int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class SubsetRequest:
    """What all subsets of one call share. Options that only some methods know are None where they were not given.

    Raises UsageError for an unknown method, a value that cannot be, and an option without a meaning for any method.
    """

    methods: Sequence[str]
    score: str | None = None
    teacher: str | None = None
    balance: bool = defaults.BALANCE
    nested: bool = False
    min_per_class: int = defaults.MIN_PER_CLASS
    center: float | None = None
    drop_hardest: float | None = None
    seed: int = defaults.SEED
    index_only: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("method", method, list(METHODS))
        self._need("score", [name for name in METHODS if "scores" in METHODS[name].needs])
        for setting in ("center", "drop_hardest"):
            self._need(setting, [name for name in METHODS if setting in METHODS[name].settings])
        self._need("device", [name for name in METHODS if sees_network(name)])
        checked_seed(self.seed)
        if self.min_per_class < 1:
            raise UsageError(f"--min-per-class must be at least 1, got {self.min_per_class}")
        if self.center is not None and not (math.isfinite(self.center) and 0 <= self.center <= 1):
            raise UsageError(f"--center must be a quantile from 0 (easiest) to 1 (hardest), got {self.center}")
        if self.drop_hardest is not None and not (math.isfinite(self.drop_hardest) and 0 <= self.drop_hardest < 1):
            raise UsageError(f"--drop-hardest must be a share from 0 to below 1, got {self.drop_hardest}")

    def _need(self, option: str, knowing: Sequence[str]) -> None:
        if getattr(self, option) is not None and not set(knowing) & set(self.methods):
            raise UsageError(
                f"--{option.replace('_', '-')} has no meaning for --method {', '.join(self.methods)}. "
                f"Leave it out, or use it with --method {' or '.join(knowing)}"
            )

    def how(self, tick: Tick = lambda picked: None) -> How:
        given = {"center": self.center, "drop_hardest": self.drop_hardest, "device": self.device}
        told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return How(tick=tick, **told)

    def choose(self, method: str, pool: Pool, fraction: float, tick: Tick = lambda picked: None) -> Picked:
        """The rows, increasing, with their weights. Every subset draws from a generator of its own. Raises UsageError
        for a fraction that cannot be."""
        rng, how = rng_for(self.seed, _SALT), self.how(tick)
        settings = (self.balance, self.nested, self.min_per_class)
        return _or_usage_error(lambda: choose(method, pool, fraction, rng, how, *settings))


@dataclass(frozen=True)
class Known:
    """What `methods` may look at, and where it comes from: labels (n,), a score (n,) which `scored_by` names with its
    teacher, and the `cache` that holds features and logits. None where no method asks.

    Its fingerprints tell what a method would see before any of the cache is read.
    """

    methods: Sequence[str]
    labels_n: np.ndarray
    scores_n: np.ndarray | None
    scored_by: str | None
    cache: CacheReader | None

    @cached_property
    def pool(self) -> Pool:
        """All that any of the methods needs, read and checked once. Raises FailureError for damage, and UsageError for
        a NaN or an infinity."""
        needs, cache = _needs(self.methods), self.cache
        features_nd = cache.features_mapped() if cache and "features" in needs else None
        logits_nc = _logits(cache) if cache and "logits" in needs else None
        pool = Pool(self.labels_n, self.scores_n, features_nd, logits_nc)
        return _or_usage_error(lambda: checked(self.methods, pool))

    @cached_property
    def scores_fingerprint(self) -> str | None:
        """Of the score's values."""
        return None if self.scores_n is None else fingerprint(np.ascontiguousarray(self.scores_n, dtype="<f8"))

    def cache_fingerprint(self, method: str) -> str | None:
        """Of the features and logits that `method` looks at, by their checksums. Raises FailureError where they are not
        in the cache."""
        needs, cache = METHODS[method].needs, self.cache
        if cache is None or not sees_network(method):
            return None
        features = ["features"] if "features" in needs else []
        logits = [f"slots/0/{name}" for name in cache.encoding.arrays(0)] if "logits" in needs else []
        return cache.contents_fingerprint(*features, *logits)


def _or_usage_error(work: Callable[[], T]) -> T:
    """What `work` answers. Raises UsageError where selection refuses what it was given."""
    try:
        return work()
    except KdtoolError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def sees_network(method: str) -> bool:
    """Whether a method looks at features or logits; then it also computes with torch."""
    return bool(_SEES & set(METHODS[method].needs))


def _needs(methods: Sequence[str]) -> set[str]:
    return {need for method in methods for need in METHODS[method].needs}


def what_is_known(
    stack: ExitStack, workspace: Workspace, data: PackedData, labels_n: np.ndarray, asked: SubsetRequest
) -> Known:
    """What any of the methods may look at, found once for all subsets. Raises UsageError or FailureError where it is
    not there."""
    needs, cache, scores_n, scored_by = _needs(asked.methods), None, None, None
    if needs & _SEES:
        cache = open_cache_of(stack, workspace, data, teacher_of(workspace, asked.teacher, data.record))
        _need_all_logits(cache, data, [name for name in asked.methods if "logits" in METHODS[name].needs])
        seeing = [name for name in asked.methods if "features" in METHODS[name].needs]
        if seeing and not cache.has_features:
            raise lacking_features(cache, f"--method {', '.join(seeing)}:")
    if "scores" in needs:
        scores_n, scored_by = find_score(workspace, data, asked.teacher, asked.score or defaults.SCORE)
    return Known(asked.methods, labels_n, scores_n, scored_by, cache)


def _need_all_logits(cache: CacheReader, data: PackedData, needing: Sequence[str]) -> None:
    """Raises UsageError where methods need logits and only the largest are kept."""
    if needing and isinstance(cache.encoding, TopLogits):
        again = f"{cache_command(data.record, cache.record.teacher)} --views {cache.slots} --encoding int8"
        if cache.record.imported:
            again = cache.made_by.replace(cache.record.encoding, "int8")
        raise UsageError(
            f"--method {', '.join(needing)}: needs the logits of all classes, and {cache.path} keeps "
            f"{cache.encoding.name}. Run: {again}"
        )


def _logits(cache: CacheReader) -> np.ndarray | DecodedRows:
    """The canonical view's logits, (n, c) floats, of a cache that keeps them all: mapped, or decoded when looked at."""
    stored = {name: slots[0] for name, slots in cache.encoded(1).items()}
    return stored["logits"] if isinstance(cache.encoding, FullLogits) else DecodedRows(cache.encoding, stored)
