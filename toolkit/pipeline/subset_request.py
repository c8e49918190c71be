"""What build-subset is asked for, checked before any work, and what its methods may look at.

Shapes: n rows, c classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from toolkit.core.errors import KdtoolError, UsageError, unknown_name
from toolkit.core.hashing import checked_seed, rng_for
from toolkit.formats.cache import CacheReader
from toolkit.formats.dataset import PackedData, cache_command
from toolkit.formats.encodings import FullLogits, TopLogits
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.known_teachers import find_teacher
from toolkit.pipeline.score import find_score
from toolkit.pipeline.score_sources import open_cache_of
from toolkit.selection import checked, choose
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Picked, Pool

_SALT = 0x5E1EC7
_SCORE = "el2n"
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
    balance: bool = True
    nested: bool = False
    min_per_class: int = 1
    center: float | None = None
    drop_hardest: float | None = None
    seed: int = 0
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
    """What the methods may look at and where it comes from, None where none asks. `scored_by` names score and teacher;
    features and logits are of the teacher `features_of`, whose fingerprint is `features_fingerprint`."""

    pool: Pool
    scored_by: str | None
    features_of: str | None
    features_fingerprint: str | None


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


def what_is_known(
    stack: ExitStack, workspace: Workspace, data: PackedData, labels_n: np.ndarray, asked: SubsetRequest
) -> Known:
    """All that any of the methods needs, read and checked once for all subsets. Raises UsageError or FailureError where
    it is not there, and UsageError for a NaN or an infinity in it."""
    needs = {need for method in asked.methods for need in METHODS[method].needs}
    scores_n, scored_by, features_nd, logits_nc, record = None, None, None, None, None
    if needs & _SEES:
        cache = open_cache_of(stack, workspace, data, find_teacher(workspace, asked.teacher, data.record.dataset)[0])
        record = cache.record
        logits_nc = _logits(cache, data, asked.methods) if "logits" in needs else None
        features_nd = cache.features_mapped() if "features" in needs else None
    if "scores" in needs:
        scores_n, scored_by = find_score(workspace, data, asked.teacher, asked.score or _SCORE)
    pool = _or_usage_error(lambda: checked(asked.methods, Pool(labels_n, scores_n, features_nd, logits_nc)))
    seen = (record.teacher, record.teacher_fingerprint) if record else (None, None)
    return Known(pool, scored_by, *seen)


def _logits(cache: CacheReader, data: PackedData, methods: Sequence[str]) -> np.ndarray:
    """The canonical view's logits, (n, c) floats. Raises UsageError where only the largest are kept."""
    if isinstance(cache.encoding, TopLogits):
        needing = ", ".join(name for name in methods if "logits" in METHODS[name].needs)
        again = f"{cache_command(data.record, cache.record.teacher)} --views {cache.slots} --encoding int8"
        raise UsageError(
            f"--method {needing}: needs the logits of all classes, and {cache.path} keeps {cache.encoding.name}. "
            f"Run: {again}"
        )
    stored = {name: slots[0] for name, slots in cache.encoded(1).items()}
    return stored["logits"] if isinstance(cache.encoding, FullLogits) else cache.encoding.dense(stored)
