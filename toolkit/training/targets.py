"""What a student learns from: cached logits in the encoding they are stored in, decoded a batch at a time.

Shapes: n rows, b batch, c classes, k cached slots, K classes kept of each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import UsageError, unknown_name
from toolkit.formats.encodings import Arrays, Encoding, FullLogits, Int8Logits, TopLogits

MATCHES = ("exact", "nearest", "mean")
_SIGNED = {2: np.int16, 4: np.int32}  # torch gathers few unsigned types

Columns = dict[str, Tensor]


class TopK(NamedTuple):
    """The K largest logits of each row, descending; their classes, int64; and the log-sum-exp of all others' z/τ at the
    TAIL_TEMPERATURES of formats/encodings.py."""

    values_bk: Tensor
    indices_bk: Tensor
    tail_b4: Tensor


@dataclass(frozen=True)
class Targets:
    """The encoded logits of the first k slots, each array (k, n, …), and how a shown view finds its own among them.

    Raises UsageError for an unknown match, and for the mean of logits that are not all there.
    """

    encoding: Encoding
    arrays: Arrays
    match: str

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise unknown_name("match", self.match, list(MATCHES))
        if self.match == "mean" and isinstance(self.encoding, TopLogits):
            raise UsageError(
                f"--match mean: {self.encoding.name} keeps too few logits for a mean. "
                "Use --match nearest or exact, or cache with --encoding int8"
            )
        for name, (shape, dtype) in self.encoding.arrays(self.rows).items():
            found = self.arrays[name]
            if (found.shape, found.dtype) != ((self.slots, *shape), dtype):
                raise ValueError(f"{name}: {found.shape} {found.dtype}, not {(self.slots, *shape)} {dtype}")

    @classmethod
    def of_logits(cls, logits_knc: np.ndarray, match: str) -> Targets:
        """Plain logits, float16, float32 or float64."""
        encoding = FullLogits(logits_knc.shape[2], logits_knc.dtype.name)
        return cls(encoding, {"logits": logits_knc}, match)

    @property
    def slots(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    @property
    def rows(self) -> int:
        return next(iter(self.arrays.values())).shape[1]

    def dense(self, slot: int) -> np.ndarray:
        """The logits of one slot: (n, c) float32."""
        return self.encoding.dense({name: array[slot] for name, array in self.arrays.items()})

    def mean(self) -> np.ndarray:
        """Each row's logits, averaged over the slots: (n, c) float32. One slot at a time is decoded."""
        total_nc = self.dense(0)
        for slot in range(1, self.slots):
            total_nc += self.dense(slot)
        return total_nc / np.float32(self.slots)

    def table(self, device: torch.device, dtype: torch.dtype, held_on: torch.device | None = None) -> TargetTable:
        """What batches on `device` are gathered from, in `dtype`; it stays on `held_on`, else on `device`."""
        if self.match == "mean":
            mean = Targets.of_logits(self.mean()[None], "exact")
            return mean.table(device, dtype, held_on)
        return TargetTable(self, device, dtype, held_on or device)


class TargetTable:
    """The encoded rows of every slot, end to end: row n of slot k stands at k·(rows) + n. See `Targets.table`."""

    def __init__(self, targets: Targets, device: torch.device, dtype: torch.dtype, held_on: torch.device) -> None:
        self._device, self._dtype = device, dtype
        self._columns = {name: _tensor(array).to(held_on).flatten(0, 1) for name, array in targets.arrays.items()}
        self._decode = _DECODERS[type(targets.encoding)]

    def gather(self, at_b: Tensor) -> Tensor | TopK:
        """The targets at the positions `at_b`, int64, on the device that holds the table. The host never waits."""
        columns = {name: column.index_select(0, at_b).to(self._device) for name, column in self._columns.items()}
        return self._decode(columns, self._dtype)


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind == "u":
        array = array.view(_SIGNED[array.itemsize])
    return torch.from_numpy(np.ascontiguousarray(array))


def _full(columns: Columns, dtype: torch.dtype) -> Tensor:
    return columns["logits"].to(dtype)


def _int8(columns: Columns, dtype: torch.dtype) -> Tensor:
    levels_bc, scale_b, offset_b = (columns[f"int8/{name}"] for name in ("levels", "scale", "offset"))
    return (levels_bc.float() * scale_b[:, None] + offset_b[:, None]).to(dtype)


def _top(columns: Columns, dtype: torch.dtype) -> TopK:
    signed_bk = columns["topk/indices"]
    unsigned = (1 << 8 * signed_bk.element_size()) - 1
    return TopK(columns["topk/values"].to(dtype), signed_bk.long() & unsigned, columns["topk/tail"].to(dtype))


_DECODERS: dict[type[Encoding], Callable[[Columns, torch.dtype], Tensor | TopK]] = {
    FullLogits: _full,
    Int8Logits: _int8,
    TopLogits: _top,
}
