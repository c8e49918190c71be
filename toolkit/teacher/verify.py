"""Whether cached logits are what the teacher says: the live teacher, asked again about some of them.

Shapes: n rows asked about, c classes, K classes kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from toolkit.formats.encodings import TAIL_TEMPERATURES, Arrays, Encoding, FullLogits, Int8Logits, TopLogits

# The mean and the largest deviation that rounding explains, as shares of the typical range of a row's logits. The same
# image in another batch, on other threads or another machine, is summed in another order. Measured: bfloat16 against
# float32 0.001 and 0.021; another view of the same image 0.042 and 0.36 at least (python -m benchmarks.deviation).
BOUNDS = {"float64": (1e-9, 1e-8), "float32": (1e-3, 1e-2), "bfloat16": (5e-3, 0.1)}


@dataclass(frozen=True)
class Deviation:
    """In logits: the mean and the largest over what was compared, and the bounds of both."""

    mean: float
    largest: float
    mean_bound: float
    largest_bound: float

    @property
    def within(self) -> bool:
        return bool(np.isfinite(self.largest)) and self.mean <= self.mean_bound and self.largest <= self.largest_bound


def deviation(encoding: Encoding, stored: Arrays, live_nc: np.ndarray, precision: str) -> Deviation:
    """Stored logits of n rows against the live teacher's of the same views.

    The bounds are those of `precision` and, on top, what the encoding itself rounds away.
    """
    with np.errstate(invalid="ignore"):  # what is stored may not be finite: it is never within bounds
        ours, live = _compared(encoding, stored, live_nc)
        found, rounding = np.abs(ours - live), _rounding(encoding, stored, ours)
    span = typical_range(live_nc)
    mean_share, largest_share = BOUNDS[precision]
    return Deviation(
        mean=float(found.mean()),
        largest=float(found.max()),
        mean_bound=mean_share * span + float(rounding.mean()),
        largest_bound=largest_share * span + float(rounding.max()),
    )


def typical_range(logits_nc: np.ndarray) -> float:
    """The median row's largest logit less its smallest: one odd class or row does not widen the bounds."""
    return float(np.median(logits_nc.max(axis=1) - logits_nc.min(axis=1)))


def _compared(encoding: Encoding, stored: Arrays, live_nc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(stored, live) numbers that should agree: all logits, or the K kept ones and the log-sum-exps of the others."""
    live_nc = live_nc.astype(np.float64)
    if isinstance(encoding, FullLogits):
        return stored["logits"].astype(np.float64), live_nc
    if not isinstance(encoding, TopLogits):
        return encoding.dense(stored).astype(np.float64), live_nc
    found_nk = stored["topk/indices"].astype(np.int64)
    classes_nk = np.minimum(found_nk, encoding.classes - 1)
    others_nc = live_nc.copy()
    np.put_along_axis(others_nc, classes_nk, -np.inf, axis=1)
    top_n1 = others_nc.max(axis=1, keepdims=True)
    tails = [np.log(np.exp((others_nc - top_n1) / tau).sum(axis=1)) + top_n1[:, 0] / tau for tau in TAIL_TEMPERATURES]
    kept_nk = np.where(found_nk == classes_nk, np.take_along_axis(live_nc, classes_nk, axis=1), -np.inf)
    live = np.column_stack([kept_nk, *tails])
    return np.column_stack([stored["topk/values"], stored["topk/tail"]]).astype(np.float64), live


def _rounding(encoding: Encoding, stored: Arrays, ours: np.ndarray) -> np.ndarray:
    """Half a step of what is stored, at each compared number."""
    if isinstance(encoding, Int8Logits):
        return 0.5 * stored["int8/scale"].astype(np.float64)
    dtype = np.float16 if isinstance(encoding, TopLogits) else next(iter(stored.values())).dtype
    return 0.5 * np.spacing(np.abs(ours).astype(dtype)).astype(np.float64)
