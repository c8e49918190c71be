"""A distillation's settings: frozen, and checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.core.errors import UsageError, unknown_name
from toolkit.training.showing import MATCHES


@dataclass(frozen=True)
class DistillSettings:
    """`alpha` weighs the teacher (0 labels only, 1 teacher only); `match` None is chosen by `resolve_match`."""

    alpha: float
    temperature: float
    match: str | None
    iterations: int | None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and 0 <= self.alpha <= 1):
            raise UsageError(f"--alpha must be from 0 to 1, got {self.alpha}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"--temperature must be above 0, got {self.temperature}")
        if self.match is not None and self.match not in MATCHES:
            raise unknown_name("match", self.match, list(MATCHES))
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(f"--iterations must be at least 1, got {self.iterations}")


def resolve_match(match: str | None, slots: int, epochs: int, family_size: int, averages: bool = True) -> str:
    """What was asked for; else `exact` where every epoch has a view of its own cached, and `mean` where not, or
    `nearest` for logits that have no mean (top-k).

    Provisional: on mild crops the mean of few cached views kept most of the gain.
    """
    if match is not None:
        return match
    if slots >= min(epochs, family_size):
        return "exact"
    return "mean" if averages else "nearest"
