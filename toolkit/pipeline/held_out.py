"""A part of a subset that a search for alpha does not train on, but judges by: never the test split.

Shapes: m rows of the subset, t of them in training, h held out.
"""

from __future__ import annotations

import numpy as np

from toolkit.core.errors import UsageError
from toolkit.core.hashing import rng_for
from toolkit.core.places import place_in_class
from toolkit.formats.bundle import Bundle
from toolkit.selection.counts import balanced_counts

SHARE = 1 / 5
_SALT = 0x4E1D


def held_out(labels_m: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions to train on (t,) and to hold out (h,), both int64 and increasing: a fifth is held out, in each class's
    proportion and by chance, but at least one row in all. Every class keeps at least one row in training.

    Raises UsageError where no class has two rows.
    """
    labels, sizes = np.unique(labels_m, return_counts=True)
    at_s = np.flatnonzero(np.isin(labels_m, labels[sizes > 1]))
    if not len(at_s):
        raise UsageError(
            f"--alpha search: no class has more than one of the subset's {len(labels_m)} rows, so none can be held "
            "out to judge by. Use --alpha auto, or a larger subset"
        )
    # at most half of the rows, so that a class of two gives one at most
    counts = balanced_counts(labels_m[at_s], max(1, round(SHARE * len(at_s))), min_per_class=0)
    shuffled_s = rng_for(seed, _SALT).permutation(at_s)
    wanted_s = np.array([counts[label] for label in labels_m[shuffled_s].tolist()])
    held_h = np.sort(shuffled_s[place_in_class(labels_m[shuffled_s]) < wanted_s])
    return np.setdiff1d(np.arange(len(labels_m)), held_h), held_h


def held_out_of(bundle: Bundle, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`held_out` of a bundle's rows: positions among them."""
    return held_out(bundle.images().records_n["label"][bundle.indices_m], seed)
