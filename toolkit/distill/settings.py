"""A distillation's settings: frozen, and checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.core.errors import UsageError, unknown_name
from toolkit.training.targets import MATCHES


@dataclass(frozen=True)
class DistillSettings:
    """`alpha` weighs the teacher (0 labels only, 1 teacher only); `match` is one of MATCHES."""

    alpha: float
    temperature: float
    match: str
    iterations: int | None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and 0 <= self.alpha <= 1):
            raise UsageError(f"--alpha must be from 0 to 1, got {self.alpha}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"--temperature must be above 0, got {self.temperature}")
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, list(MATCHES))
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(f"--iterations must be at least 1, got {self.iterations}")
