"""Choosing rows: pure functions of labels, scores, a fraction and a generator.

A method ranks all rows, best first, ties broken at random; `choose` keeps exactly round(fraction · n) of them.
Shapes: n rows, m kept.
"""

from __future__ import annotations

import math

import numpy as np

from toolkit.selection.counts import balanced_counts, keep_every_class
from toolkit.selection.methods import METHODS


def choose(
    method: str,
    labels_n: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
    scores_n: np.ndarray | None = None,
    balance: bool = True,
) -> np.ndarray:
    """The rows kept, increasing: (m,) int64 with m = round(fraction · n) exactly.

    With `balance` each class keeps its share of m, by largest remainders; without, the ranking decides. Either way
    every class keeps at least one row. Raises ValueError for a fraction outside (0, 1], an unknown method, a missing or
    non-finite score, scores of other rows than the labels, or fewer rows than classes.
    """
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        raise ValueError(f"--frac must be above 0 and at most 1, got {fraction}")
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}': known are {', '.join(METHODS)}")
    if scores_n is not None and len(scores_n) != len(labels_n):
        raise ValueError(f"{len(scores_n)} scores for {len(labels_n)} labels")
    if METHODS[method].needs_score:
        if scores_n is None:
            raise ValueError(f"--method {method} needs a score")
        if not np.isfinite(scores_n).all():
            raise ValueError(f"the score of row {int(np.flatnonzero(~np.isfinite(scores_n))[0])} is not finite")
    classes = np.unique(labels_n)
    keep = round(fraction * len(labels_n))
    if keep < len(classes):
        smallest = len(classes) / len(labels_n)
        raise ValueError(
            f"--frac {fraction:g} keeps {keep} of {len(labels_n)} rows, fewer than the {len(classes)} classes: "
            f"a class would be left empty. Use --frac {math.ceil(smallest * 1e4) / 1e4:g} or more"
        )
    ranked_n = METHODS[method].rank(scores_n if scores_n is not None else np.zeros(len(labels_n)), rng)
    if balance:
        counts = balanced_counts(labels_n, keep)
        by_class_n = ranked_n[np.argsort(labels_n[ranked_n], kind="stable")]  # within a class still best first
        first_of = np.searchsorted(labels_n[by_class_n], list(counts))
        kept = np.concatenate([by_class_n[at : at + counts[label]] for at, label in zip(first_of, counts, strict=True)])
    else:
        kept = keep_every_class(ranked_n, labels_n, keep)
    return np.sort(kept)
