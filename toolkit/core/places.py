"""Places within classes. Shapes: n rows."""

from __future__ import annotations

import numpy as np


def place_in_class(labels_n: np.ndarray) -> np.ndarray:
    """Each row's place among the rows of its class, from 0: (n,) int64."""
    place_n = np.empty(len(labels_n), dtype=np.int64)
    by_class_n = np.argsort(labels_n, kind="stable")
    sorted_n = labels_n[by_class_n]
    place_n[by_class_n] = np.arange(len(labels_n)) - np.searchsorted(sorted_n, sorted_n)
    return place_n
