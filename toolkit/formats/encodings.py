"""How one view's logits are stored: all of them (`float16`, `float32`), eight bits each (`int8`), or the K largest and
what the others add up to (`topk:K`).

    float16, float32   logits (n, c)
    int8               int8/levels (n, c) int8, int8/scale (n,) and int8/offset (n,) float32: offset + scale · level
    topk:K             topk/values (n, K) float16, descending, topk/indices (n, K) uint16 (uint32 past 65,536 classes),
                       topk/tail (n, 4) float16: log Σ exp(z/τ) over the other classes, at τ = 1, 2, 4, 8

The names are those of the datasets in a slot of a cache. Shapes: n rows, c classes, K classes kept.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError, nearest

TAIL_TEMPERATURES = (1, 2, 4, 8)
_FULL = ("float16", "float32", "float64")  # float64 is for proofs of exactness
_STEPS = 255

Arrays = dict[str, np.ndarray]


def default_encoding(classes: int) -> str:
    """All logits, in eight bits each where they are many: what kept accuracy (`python -m benchmarks.encodings`)."""
    return "float16" if classes <= 200 else "int8"


@dataclass(frozen=True)
class Encoding(ABC):
    """Logits over `classes` classes. `Encoding.parse` makes one of the name users give it."""

    classes: int

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise UsageError(f"--encoding must be of at least 1 class, got {self.classes}")

    @staticmethod
    def parse(name: str, classes: int) -> Encoding:
        """Raises UsageError, saying what is possible, for a name that means nothing or a K that leaves no class out."""
        if name in _FULL:
            return FullLogits(classes, name)
        if name == "int8":
            return Int8Logits(classes)
        kept = re.fullmatch(r"topk:([0-9]{1,9})", name)
        if kept:
            return TopLogits(classes, int(kept[1]))
        topk = f" and topk:K, K from 1 to {classes - 1}" if classes > 1 else ""
        near = nearest(name.lower(), [*_FULL, "int8", "topk:K"])
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"--encoding {name}: {hint}known are float16, float32, int8{topk}")

    @property
    @abstractmethod
    def name(self) -> str:
        """What `parse` reads."""

    @abstractmethod
    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """What stands in a slot of `rows` rows: {dataset: (shape, dtype)}, every shape beginning with `rows`."""

    @abstractmethod
    def encode(self, logits_nc: np.ndarray) -> Arrays:
        """Finite logits, float32 or float64, as they are stored. Raises FailureError where they are out of range."""

    @abstractmethod
    def dense(self, arrays: Arrays) -> np.ndarray:
        """The logits of stored rows, (n, c) float32, as nearly as the encoding knows them."""

    @abstractmethod
    def top_class(self, arrays: Arrays) -> np.ndarray:
        """The class of the largest stored logit, the lowest among equals: (n,) int64."""

    @property
    def bytes_per_view(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.arrays(1).values())


@dataclass(frozen=True)
class FullLogits(Encoding):
    """Every logit, rounded to `dtype`."""

    dtype: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype not in _FULL:
            raise UsageError(f"--encoding {self.dtype}: logits are not stored so. Use one of {', '.join(_FULL)}")

    @property
    def name(self) -> str:
        return self.dtype

    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return {"logits": ((rows, self.classes), np.dtype(self.dtype))}

    def encode(self, logits_nc: np.ndarray) -> Arrays:
        return {"logits": _rounded(logits_nc, self.dtype)}

    def dense(self, arrays: Arrays) -> np.ndarray:
        return arrays["logits"].astype(np.float32)

    def top_class(self, arrays: Arrays) -> np.ndarray:
        return arrays["logits"].argmax(axis=1)


@dataclass(frozen=True)
class Int8Logits(Encoding):
    """Every logit to the nearest of 256 levels, evenly spaced from the row's smallest to its largest."""

    @property
    def name(self) -> str:
        return "int8"

    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        per_row = (rows,), np.dtype(np.float32)
        levels = (rows, self.classes), np.dtype(np.int8)
        return {"int8/levels": levels, "int8/scale": per_row, "int8/offset": per_row}

    def encode(self, logits_nc: np.ndarray) -> Arrays:
        logits_nc = _rounded(logits_nc, "float32")
        low_n, high_n = (end(axis=1).astype(np.float64) for end in (logits_nc.min, logits_nc.max))
        scale_n = ((high_n - low_n) / _STEPS).astype(np.float32)
        offset_n = (low_n + 128 * scale_n.astype(np.float64)).astype(np.float32)
        step_n = np.where(scale_n > 0, scale_n, np.float32(1))  # all logits of a row may be equal
        levels_nc = np.rint((logits_nc - offset_n[:, None]) / step_n[:, None]).clip(-128, 127)
        return {"int8/levels": levels_nc.astype(np.int8), "int8/scale": scale_n, "int8/offset": offset_n}

    def dense(self, arrays: Arrays) -> np.ndarray:
        levels_nc = arrays["int8/levels"].astype(np.float32)
        return levels_nc * arrays["int8/scale"][:, None] + arrays["int8/offset"][:, None]

    def top_class(self, arrays: Arrays) -> np.ndarray:
        return arrays["int8/levels"].argmax(axis=1)


@dataclass(frozen=True)
class TopLogits(Encoding):
    """The `kept` largest logits with their classes, and the log-sum-exp of all others at TAIL_TEMPERATURES."""

    kept: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 2:
            raise UsageError(f"--encoding {self.name}: a single class leaves none out. Use --encoding float16")
        if not 1 <= self.kept < self.classes:
            raise UsageError(f"--encoding {self.name}: of {self.classes} classes, keep from 1 to {self.classes - 1}")

    @property
    def name(self) -> str:
        return f"topk:{self.kept}"

    @property
    def _index_dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.classes <= 1 << 16 else np.uint32)

    def arrays(self, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        half = np.dtype(np.float16)
        return {
            "topk/values": ((rows, self.kept), half),
            "topk/indices": ((rows, self.kept), self._index_dtype),
            "topk/tail": ((rows, len(TAIL_TEMPERATURES)), half),
        }

    def encode(self, logits_nc: np.ndarray) -> Arrays:
        _refuse_beyond(logits_nc.max(axis=1), "float16")  # first: what is not a number has no place in an order
        rows, kept_nc = len(logits_nc), _largest(logits_nc, self.kept)
        classes_nk = np.nonzero(kept_nc)[1].reshape(rows, self.kept)
        values_nk = logits_nc[kept_nc].reshape(rows, self.kept)
        order_nk = np.argsort(-values_nk, axis=1, kind="stable")  # stable: of equals, the lower class first
        others_nc = logits_nc[~kept_nc].reshape(rows, self.classes - self.kept).astype(np.float64)
        return {
            "topk/values": _rounded(np.take_along_axis(values_nk, order_nk, axis=1), "float16"),
            "topk/indices": np.take_along_axis(classes_nk, order_nk, axis=1).astype(self._index_dtype),
            "topk/tail": _rounded(_log_sum_exps(others_nc), "float16"),
        }

    def dense(self, arrays: Arrays) -> np.ndarray:
        """An approximation: the classes that are not stored share their mass at τ = 1 evenly."""
        even_n = arrays["topk/tail"][:, 0].astype(np.float32) - np.float32(math.log(self.classes - self.kept))
        logits_nc = np.repeat(even_n[:, None], self.classes, axis=1)
        values_nk = arrays["topk/values"].astype(np.float32)
        np.put_along_axis(logits_nc, arrays["topk/indices"].astype(np.int64), values_nk, axis=1)
        return logits_nc

    def top_class(self, arrays: Arrays) -> np.ndarray:
        return arrays["topk/indices"][:, 0].astype(np.int64)


class DecodedRows:
    """The logits of stored rows, (n, c) float32, decoded when asked for: `rows[at]`, of a slice or of positions."""

    ndim, dtype = 2, np.dtype(np.float32)

    def __init__(self, encoding: Encoding, arrays: Arrays) -> None:
        self._encoding, self._arrays = encoding, arrays
        self.shape = (len(next(iter(arrays.values()))), encoding.classes)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: Any) -> np.ndarray:
        return self._encoding.dense({name: array[at] for name, array in self._arrays.items()})

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def _largest(logits_nc: np.ndarray, kept: int) -> np.ndarray:
    """Which `kept` logits of each row are its largest, the lower class among equals: (n, c) bool. It sorts no row."""
    least_n1 = np.partition(logits_nc, -kept, axis=1)[:, [-kept]]
    above_nc, equal_nc = logits_nc > least_n1, logits_nc == least_n1
    room_n1 = kept - above_nc.sum(axis=1, keepdims=True)
    return above_nc | (equal_nc & (equal_nc.cumsum(axis=1) <= room_n1))


def _log_sum_exps(logits_nc: np.ndarray) -> np.ndarray:
    """log Σ exp(z/τ) over the classes, for each of TAIL_TEMPERATURES: (n, 4)."""
    top_n1 = logits_nc.max(axis=1, keepdims=True)
    below_nc = logits_nc - top_n1
    sums_n4 = np.stack([np.exp(below_nc / tau).sum(axis=1) for tau in TAIL_TEMPERATURES], axis=1)
    return top_n1 / np.array(TAIL_TEMPERATURES) + np.log(sums_n4)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    _refuse_beyond(values, dtype)
    return values.astype(dtype)


def _refuse_beyond(values: np.ndarray, dtype: str) -> None:
    limit = float(np.finfo(dtype).max)
    if not float(np.abs(values).max(initial=0)) <= limit:  # so written, it refuses what is not a number too
        instead = "Use --encoding float32" if dtype == "float16" else "Name another --teacher"
        raise FailureError(f"teacher: logits beyond ±{limit:,.6g} do not fit {dtype}. {instead}")
