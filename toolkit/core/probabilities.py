"""Whether numbers meant as logits are probabilities. Shapes: b rows, c classes."""

from __future__ import annotations

import numpy as np

_SUM_TOLERANCE = 0.01  # of probabilities in float16


def look_like_probabilities(rows_bc: np.ndarray) -> bool:
    """Whether every row is all from 0 to 1 and sums to 1. Of one class nobody can tell: False."""
    sums_b = rows_bc.sum(axis=1, dtype=np.float64)
    in_range = rows_bc.min(initial=1) >= 0 and rows_bc.max(initial=0) <= 1
    return bool(rows_bc.shape[1] > 1 and in_range and (np.abs(sums_b - 1) <= _SUM_TOLERANCE).all())
