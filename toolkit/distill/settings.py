"""A distillation's settings: frozen, and checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from toolkit.core import defaults
from toolkit.core.errors import UsageError, unknown_name
from toolkit.distill.alpha import alpha_rule
from toolkit.distill.losses import LOSSES, DistillLoss, no_mean_over_rows
from toolkit.training.targets import MATCHES

ALPHAS = ("auto", "search")


@dataclass(frozen=True)
class DistillSettings:
    """`alpha` weighs the teacher (0 labels only, 1 teacher only) or is one of ALPHAS; `match` is one of MATCHES, `loss`
    of LOSSES. `temperature` and `beta` are None where nothing uses them."""

    alpha: float | str
    temperature: float | None
    match: str
    iterations: int | None
    loss: str = defaults.LOSS
    beta: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.alpha, str):
            known = self.alpha in ALPHAS
        else:
            known = math.isfinite(self.alpha) and 0 <= self.alpha <= 1
        if not known:
            raise UsageError(f"--alpha must be a number from 0 to 1, auto or search, got {self.alpha}")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UsageError(f"--temperature must be above 0, got {self.temperature}")
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, list(MATCHES))
        if self.iterations is not None and self.iterations < 1:
            raise UsageError(f"--iterations must be at least 1, got {self.iterations}")
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, list(LOSSES))
        if self.beta is None:
            return
        if self.kind.beta is None:
            having = " and ".join(f"{name}'s" for name, kind in LOSSES.items() if kind.beta is not None)
            raise UsageError(f"--beta {self.beta:g} is {having}: --loss {self.loss} has none. Leave it out")
        if not (math.isfinite(self.beta) and self.beta >= 0):
            raise UsageError(f"--beta must be at least 0, got {self.beta}")

    @property
    def kind(self) -> DistillLoss:
        return LOSSES[self.loss]

    def resolved(self, fraction: float) -> DistillSettings:
        """For a subset that keeps this fraction: auto is the rule's number, `beta` the loss's own where none was given,
        and what nothing uses is dropped, so that equal students have equal settings."""
        if self.alpha == 0:  # without the teacher there is no loss to choose
            return replace(self, alpha=0.0, temperature=None, loss="kd", beta=None)
        alpha = alpha_rule(fraction) if self.alpha == "auto" else self.alpha
        return replace(
            self,
            alpha=alpha if isinstance(alpha, str) else float(alpha),
            temperature=self.temperature if self.kind.temperature else None,
            beta=self.kind.beta if self.beta is None else self.beta,
        )

    def refuse_weights(self) -> None:
        """Raises UsageError where rows' weights were asked for, and the loss is no mean over rows."""
        if not self.kind.weights:
            raise no_mean_over_rows(self.loss)
