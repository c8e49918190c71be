"""make bench: every method of selection on 60,000 × 64 features, balanced, f = 0.3, beside its bound of seconds.

    python -m benchmarks.selection [--save] [--quick] [--methods random d2 …]    # 16 methods in turn

Each runs in a process of its own, with torch imported and the pool in memory before the clock starts: what is timed is
`toolkit.selection.choose`, and the memory is the peak less what those hold. What takes four times its bound is stopped.

The pool is synthetic: ten classes of eight modes each, as a ResNet's pooled features look (never negative, float16),
and the logits of a linear head on them that errs on one row in eighteen; the score is EL2N. What a method picks of it
says nothing; how long it takes is that of real features of the shape. --save writes results/selection-<date>.json.

Shapes: n rows, d features, c classes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.child import Measured, measured, work
from toolkit.core.hashing import rng_for
from toolkit.report.tables import table
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Pool

FRACTION = 0.3
POOL_BASED_S, GREEDY_S, STOPPED_AT = 60.0, 300.0, 4.0
GREEDY = ("facility-location", "graph-cut", "craig", "grad-match", "glister")  # submodular, and on gradients
MODES, APART, SPREAD, LOGIT_SIGMA = 8, 0.6, 1.75, 5.0
FIELDS = ("labels_n", "scores_n", "features_nd", "logits_nc")
_SALT = 0x5E1BE7


@dataclass(frozen=True)
class Sizes:
    rows: int = 60_000
    features: int = 64
    classes: int = 10


QUICK = Sizes(1_500, 16, 5)


def bound_s(method: str) -> float:
    return GREEDY_S if method in GREEDY else POOL_BASED_S


def synthetic(sizes: Sizes) -> Pool:
    """Labels int64, scores float32, features and logits float16, as a cache holds them."""
    rng = rng_for(0, _SALT)
    centres_cd = rng.normal(size=(sizes.classes, sizes.features))
    modes_kd = np.repeat(centres_cd, MODES, axis=0)
    modes_kd += APART * rng.normal(size=modes_kd.shape)
    labels_n = rng.permutation(np.arange(sizes.rows) % sizes.classes)
    modes_n = labels_n * MODES + rng.integers(MODES, size=sizes.rows)
    features_nd = np.maximum(modes_kd[modes_n] + SPREAD * rng.normal(size=(sizes.rows, sizes.features)), 0)
    one_hot_nc = np.eye(sizes.classes)[labels_n]
    centred_nd = features_nd - features_nd.mean(axis=0)
    head_dc, *_ = np.linalg.lstsq(centred_nd, one_hot_nc - 1 / sizes.classes, rcond=None)
    logits_nc = centred_nd @ head_dc
    logits_nc *= LOGIT_SIGMA / logits_nc.std()
    p_nc = np.exp(logits_nc - logits_nc.max(axis=1, keepdims=True))
    el2n_n = np.linalg.norm(p_nc / p_nc.sum(axis=1, keepdims=True) - one_hot_nc, axis=1)
    return Pool(labels_n, el2n_n.astype(np.float32), features_nd.astype(np.float16), logits_nc.astype(np.float16))


def write_pool(pool: Pool, folder: Path) -> None:
    for field in FIELDS:
        np.save(folder / f"{field}.npy", getattr(pool, field))


def choosing(method: str, folder: Path) -> None:
    """In the child."""
    import torch  # noqa: F401 - most methods need it: it counts for none

    from toolkit.selection import choose

    pool = Pool(*(np.load(folder / f"{field}.npy") for field in FIELDS))

    def run() -> int:
        return len(choose(method, pool, FRACTION, rng_for(0, _SALT, 1), How()).rows_m)

    work(run, STOPPED_AT * bound_s(method))


def row(method: str, found: Measured) -> list[str]:
    bound = f"{bound_s(method):.0f} s"
    if found.error is not None:
        seconds = f"over {STOPPED_AT * bound_s(method):.0f} s" if found.error == "stopped" else found.error
        return [method, seconds, "", bound, "no"]
    within = "yes" if found.seconds <= bound_s(method) else "no"
    return [method, f"{found.seconds:.1f} s", f"{found.more_bytes / 2**20:,.0f} MiB", bound, within]


HEADER = ["method", "time", "memory beyond the pool's", "bound", "within"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write results/selection-<date>.json")
    parser.add_argument("--quick", action="store_true", help="tiny: only to see that it runs")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="only these")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        choosing(asked.child[0], Path(asked.child[1]))
        return
    from benchmarks.machine import facts, in_words, save, scratch

    sizes, machine = QUICK if asked.quick else Sizes(), facts()
    print(in_words(machine), flush=True)
    results: dict[str, Measured] = {}
    with scratch() as folder:
        write_pool(synthetic(sizes), folder)
        for method in asked.methods:
            results[method] = measured("benchmarks.selection", "--child", method, folder)
            print(f"{method}: {', '.join(row(method, results[method])[1:3])}", file=sys.stderr, flush=True)
    print(table(HEADER, [row(method, found) for method, found in results.items()]))
    print(f"{sizes.rows:,} × {sizes.features} synthetic features, {sizes.classes} classes, balanced, f = {FRACTION:g}")
    if asked.save:
        found = {method: {"bound_s": bound_s(method), **result.to_record()} for method, result in results.items()}
        print(save("selection", {"machine": machine, "fraction": FRACTION, **vars(sizes), "results": found}))


if __name__ == "__main__":
    main()
