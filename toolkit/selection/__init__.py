"""Choosing rows: pure functions of labels, scores, features and logits, a fraction and a generator.

A method ranks the whole pool, or picks from one class's rows at a time (see methods.py); `choose` keeps exactly
round(fraction · n) of them, as many of every class as asked.

Shapes: n rows, m kept, k of them of one class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from toolkit.selection.counts import balanced_counts, keep_every_class, least_counts, nested_counts
from toolkit.selection.methods import METHODS
from toolkit.selection.pool import How, Picked, Pool

_WHERE = {
    "scores": "name one with --score",
    "features": "name a teacher whose cache holds them with --teacher (kdtool cache-teacher makes it)",
    "logits": "name a teacher whose cache holds them with --teacher (kdtool cache-teacher makes it)",
}
_BLOCK_ROWS = 8192
_USUAL = How()


def choose(
    method: str,
    pool: Pool,
    fraction: float,
    rng: np.random.Generator,
    how: How = _USUAL,
    balance: bool = True,
    nested: bool = False,
    min_per_class: int = 1,
) -> Picked:
    """The rows kept, increasing: (m,) int64 with m = round(fraction · n) exactly, and their weights, or None.

    With `balance` each class keeps its share of m; without, the method decides over all rows. Either way every class
    keeps at least min(min_per_class, its size) rows: globally, the best rows of a class that falls short replace the
    last picked rows of classes that can spare them. An equally seeded generator gives the same rows.

    With `nested`, the rows of a smaller fraction are among those of a larger one, all else equal: shares are then
    Webster's instead of largest remainders, and a global choice begins with what every class keeps at least.

    Weights, of the methods that give them, are (m,) float64 of mean 1. Balanced, those of each class have mean 1.
    Globally, those of the rows the method picked itself have mean 1 among themselves, and rows kept for their class's
    sake weigh 1.

    Raises ValueError for a fraction outside (0, 1], one that keeps too few rows for every class, an unknown method, or
    when something that the method needs is missing, of other rows than the labels, or not finite. That it is finite
    takes a reading of all of it, but for what `checked` has seen.
    """
    _check_settings(method, fraction, min_per_class)
    pool = checked([method], pool)
    keep, least = round(fraction * len(pool)), least_counts(pool.labels_n, min_per_class)
    _check_enough(fraction, keep, len(pool), least, min_per_class)
    source = _source(method, pool, rng, how, tick_classes=balance)
    if balance:
        count = nested_counts if nested else balanced_counts
        chosen = _balanced(source, count(pool.labels_n, keep, min_per_class))
    else:
        chosen = (_global_nested if nested else _global)(source, pool.labels_n, keep, least)
    order = np.argsort(chosen.rows_m)
    weights_m = None if chosen.weights_m is None else chosen.weights_m[order]
    return Picked(chosen.rows_m[order], weights_m)


def checked(methods: Sequence[str], pool: Pool) -> Pool:
    """The same pool, known to hold what the methods need: `choose` then reads it no more to see that it is finite.

    Raises ValueError where something is missing, of other rows than the labels, or not finite, or a method is
    unknown.
    """
    given = {"scores": pool.scores_n, "features": pool.features_nd, "logits": pool.logits_nc}
    for name, array in given.items():
        if array is not None and len(array) != len(pool):
            raise ValueError(f"{name} of {len(array)} rows for {len(pool)} labels")
    finite = set(pool.finite)
    for method in methods:
        _check_known(method)
        for name in METHODS[method].needs:
            array = given[name]
            if array is None:
                raise ValueError(f"--method {method} needs {name}: {_WHERE[name]}")
            row = None if name in finite else _first_not_finite(array)
            if row is not None:
                raise ValueError(f"--method {method} needs finite {name}: those of row {row} are not")
            finite.add(name)
    return replace(pool, finite=frozenset(finite))


class _Source(NamedTuple):
    """A method at work on a pool: its first rows of a class (label, count), or of all (count), best first. Each is
    asked for once: what it draws is drawn then."""

    of_class: Callable[[int, int], Picked]
    of_all: Callable[[int], Picked]


def _source(method: str, pool: Pool, rng: np.random.Generator, how: How, tick_classes: bool) -> _Source:
    """Without `tick_classes`, rows of single classes come on top of those of all, and are no progress."""
    rank, pick = METHODS[method].rank, METHODS[method].pick
    if rank is not None:
        ranked_n = rank(pool, rng, how)
        ranked_of = _by_class(ranked_n, pool.labels_n)
        return _Source(lambda label, count: Picked(ranked_of[label][:count]), lambda count: Picked(ranked_n[:count]))
    assert pick is not None
    rows_of = _by_class(np.arange(len(pool)), pool.labels_n)
    # a generator for each class: what one class draws is then no matter of how many rows another keeps
    rng_of_all, *rngs = rng.spawn(len(rows_of) + 1)
    rng_of = dict(zip(rows_of, rngs, strict=True))
    how_of_class = how if tick_classes else replace(how, tick=_USUAL.tick)

    def of_class(label: int, count: int) -> Picked:
        rows_k = rows_of[label]
        picked = pick(pool.of(rows_k), count, rng_of[label], how_of_class)
        return Picked(rows_k[picked.rows_m], picked.weights_m)

    def of_all(count: int) -> Picked:
        logits_nc = None if pool.logits_nc is None else pool.logits_nc[:]
        return pick(replace(pool, logits_nc=logits_nc), count, rng_of_all, how)

    return _Source(of_class, of_all)


def _by_class(order_n: np.ndarray, labels_n: np.ndarray) -> dict[int, np.ndarray]:
    """Each class's rows in the order given, by increasing label."""
    sorted_n = order_n[np.argsort(labels_n[order_n], kind="stable")]
    labels, first_of = np.unique(labels_n[sorted_n], return_index=True)
    return dict(zip(labels.tolist(), np.split(sorted_n, first_of[1:]), strict=True))


def _balanced(source: _Source, counts: dict[int, int]) -> Picked:
    parts = [source.of_class(label, count) for label, count in counts.items()]
    rows_m = np.concatenate([part.rows_m for part in parts])
    weights = [_of_mean_one(part.weights_m) for part in parts if part.weights_m is not None]
    return Picked(rows_m, np.concatenate(weights) if weights else None)


def _global(source: _Source, labels_n: np.ndarray, keep: int, least: dict[int, int]) -> Picked:
    picked = source.of_all(keep)
    rows_m = keep_every_class(picked.rows_m, labels_n, least, lambda label, count: source.of_class(label, count).rows_m)
    return Picked(rows_m, _weights_of(rows_m, picked))


def _global_nested(source: _Source, labels_n: np.ndarray, keep: int, least: dict[int, int]) -> Picked:
    """The best rows of every class first: were they put in where a class falls short, a larger choice could lose one
    that its rank does not reach."""
    first = np.concatenate([source.of_class(label, count).rows_m for label, count in least.items()])
    picked = source.of_all(keep)
    rows_m = np.concatenate([first, picked.rows_m[~np.isin(picked.rows_m, first)]])[:keep]
    return Picked(rows_m, _weights_of(rows_m, picked))


def _weights_of(rows_m: np.ndarray, picked: Picked) -> np.ndarray | None:
    """The picked rows' weights for `rows_m`, their mean 1; 1 for rows that were not picked."""
    if picked.weights_m is None:
        return None
    weight_of = dict(zip(picked.rows_m.tolist(), picked.weights_m.tolist(), strict=True))
    own_m = np.isin(rows_m, picked.rows_m)
    weights_m = np.ones(len(rows_m))
    weights_m[own_m] = _of_mean_one(np.array([weight_of[row] for row in rows_m[own_m].tolist()]))
    return weights_m


def _of_mean_one(weights_m: np.ndarray) -> np.ndarray:
    """Weights scaled to mean 1; all 1 where they are all 0, which says nothing of any row."""
    mean = weights_m.mean() if len(weights_m) else 0.0
    return weights_m / mean if mean > 0 else np.ones(len(weights_m))


def _check_settings(method: str, fraction: float, min_per_class: int) -> None:
    _check_known(method)
    if not (math.isfinite(fraction) and 0 < fraction <= 1):
        raise ValueError(f"--frac must be above 0 and at most 1, got {fraction}")
    if min_per_class < 1:
        raise ValueError(f"--min-per-class must be at least 1, got {min_per_class}")


def _check_known(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method '{method}': known are {', '.join(METHODS)}")


def _first_not_finite(array: np.ndarray) -> int | None:
    """The first row with a NaN or an infinity, a block at a time: the array may be mapped, and large."""
    for start in range(0, len(array), _BLOCK_ROWS):
        finite = np.isfinite(array[start : start + _BLOCK_ROWS])
        if not finite.all():
            return start + int(np.argmin(finite.reshape(len(finite), -1).all(axis=1)))
    return None


def _check_enough(fraction: float, keep: int, rows: int, least: dict[int, int], min_per_class: int) -> None:
    needed = sum(least.values())
    if keep >= needed:
        return
    enough = f"Use --frac {math.ceil(needed / rows * 1e4) / 1e4:g} or more"
    kept = f"--frac {fraction:g} keeps {keep} of {rows} rows, fewer than the"
    if min_per_class == 1:
        raise ValueError(f"{kept} {needed} classes: a class would be left empty. {enough}")
    raise ValueError(
        f"{kept} {needed} that {len(least)} classes with --min-per-class {min_per_class} need. {enough}, "
        "or a lower --min-per-class"
    )
