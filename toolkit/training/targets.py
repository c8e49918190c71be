"""What a student learns from: cached logits in the encoding they are stored in, decoded a batch at a time.

They are held on the device (`TargetTable`), or left on disk and read ahead of the step (`TargetReader`).

Shapes: n rows, b batch, c classes, k cached slots, K classes kept of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from toolkit.core.errors import UsageError, unknown_name
from toolkit.formats.encodings import Encoding, FullLogits, Int8Logits, TopLogits
from toolkit.formats.mapped import SlotsOnDisk, SomeRows

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

    The arrays may lie on disk (CacheReader.encoded). Raises UsageError for an unknown match, and for the mean of logits
    that are not all there.
    """

    encoding: Encoding
    arrays: Mapping[str, np.ndarray | SlotsOnDisk | SomeRows]
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

    def of_rows(self, at_m: np.ndarray) -> Targets:
        """Those of the rows at these positions, in this order; what lies on disk is left there."""
        return replace(self, arrays={name: SomeRows(array, at_m) for name, array in self.arrays.items()})

    @property
    def slots(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    @property
    def rows(self) -> int:
        return next(iter(self.arrays.values())).shape[1]

    @property
    def bytes(self) -> int:
        """What a table of them takes."""
        if self.match == "mean":
            return self.rows * self.encoding.classes * 4
        return self.slots * self.rows * self.encoding.bytes_per_view

    def dense(self, slot: int, at_b: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The logits of one slot, of all rows or those at `at_b`: (n, c) float32."""
        return self.encoding.dense({name: array[slot][at_b] for name, array in self.arrays.items()})

    def mean(self, at_b: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Each row's logits, averaged over the slots: (n, c) float32. One slot at a time is decoded."""
        total_nc = self.dense(0, at_b)
        for slot in range(1, self.slots):
            total_nc += self.dense(slot, at_b)
        total_nc /= np.float32(self.slots)
        return total_nc

    def table(self, device: torch.device, dtype: torch.dtype) -> TargetTable:
        """What batches on `device` are gathered from, in `dtype`."""
        if self.match == "mean":
            return Targets.of_logits(self.mean()[None], "exact").table(device, dtype)
        return TargetTable(self, device, dtype)


class TargetTable:
    """The encoded rows of every slot on the device, end to end: row n of slot k stands at k·(rows) + n."""

    def __init__(self, targets: Targets, device: torch.device, dtype: torch.dtype) -> None:
        self._dtype, self._decode = dtype, _DECODERS[type(targets.encoding)]
        self._columns = {name: _on_device(array, device) for name, array in targets.arrays.items()}

    def gather(self, at_b: Tensor) -> Tensor | TopK:
        """The targets at the positions `at_b`, int64, on the device. The host never waits."""
        return self._decode({name: rows.index_select(0, at_b) for name, rows in self._columns.items()}, self._dtype)


class TargetReader:
    """The encoded rows of a batch from arrays that may lie on disk: `read` in any thread, `decode` on the device."""

    def __init__(self, targets: Targets, dtype: torch.dtype) -> None:
        self._targets, self._dtype = targets, dtype
        stored = FullLogits if targets.match == "mean" else type(targets.encoding)
        self._decode = _DECODERS[stored]

    def read(self, slot_b: np.ndarray, at_b: np.ndarray) -> Columns:
        """The stored rows `at_b` of the slots `slot_b`, both int64, on the CPU."""
        if self._targets.match == "mean":
            return {"logits": torch.from_numpy(self._targets.mean(at_b))}
        return {name: _tensor(_picked(array, slot_b, at_b)) for name, array in self._targets.arrays.items()}

    def decode(self, columns: Columns) -> Tensor | TopK:
        """What `read` gave, wherever it has been sent since, as targets there."""
        return self._decode(columns, self._dtype)


def _picked(array: np.ndarray | SlotsOnDisk | SomeRows, slot_b: np.ndarray, at_b: np.ndarray) -> np.ndarray:
    """array[slot_b, at_b], for an array whose slots lie apart."""
    picked = np.empty((len(at_b), *array.shape[2:]), array.dtype)
    for slot in np.unique(slot_b).tolist():
        of_slot_b = slot_b == slot
        picked[of_slot_b] = array[slot][at_b[of_slot_b]]
    return picked


def _on_device(array: np.ndarray | SlotsOnDisk | SomeRows, device: torch.device) -> Tensor:
    """(k, n, …) as (k·n, …)."""
    slots, rows, *more = array.shape
    first = _tensor(np.array(array[0]))
    table = torch.empty((slots * rows, *more), dtype=first.dtype, device=device)  # filled in place: it may be large
    for slot in range(slots):
        table[slot * rows : (slot + 1) * rows].copy_(_tensor(np.array(array[slot])) if slot else first)
    return table


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
