"""Fingerprints of content, and counter-based random numbers: the same integers in give the same integers out,
whatever the batch, the order, the thread or the machine.

Shapes: the arrays of `mix` broadcast against each other.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from toolkit.core.errors import UsageError

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014)."""
    x = x + _GAMMA
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))


def mix(*counters: Any) -> np.ndarray:
    """A uint64 hash of the counters (integers, or integer arrays that broadcast), each position in the order given."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        for counter in counters:
            state = _splitmix64(state ^ np.asarray(counter).astype(np.uint64))
    return state


def checked_seed(seed: int) -> int:
    """A seed that both torch and `mix` take. Raises UsageError for one that does not fit 63 bits."""
    if not 0 <= seed < 1 << 63:
        raise UsageError(f"--seed must be from 0 to {(1 << 63) - 1}, got {seed}")
    return seed


def rng_for(*counters: int) -> np.random.Generator:
    """A generator of its own for each tuple of counters, so that no two purposes share a stream."""
    return np.random.default_rng(int(mix(*counters)))


def smallest_index(rows: int) -> type[np.signedinteger]:
    """The type for numbers below `rows`: of four bytes, up to two thousand million."""
    return np.int32 if rows <= 1 << 31 else np.int64


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits of SHA-256 over the parts: bytes-like, or text (as str)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
