"""Arrays that stay on disk: the rows of a contiguous HDF5 dataset through a memory map, slot by slot, all or some.

Shapes: k slots, n rows, m of them.
"""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np


class SlotsOnDisk:
    """What `np.stack` of the slots would be, (k, n, …), with each slot left where it lies. `stack[slot]` is a slot."""

    def __init__(self, slots: list[np.ndarray]) -> None:
        self._slots = slots

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._slots), *self._slots[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return self._slots[0].dtype

    def __getitem__(self, slot: int) -> np.ndarray:
        return self._slots[slot]

    def in_memory(self) -> np.ndarray:
        return np.stack(self._slots)


class SomeRows:
    """The rows `at_m`, int64, of a stack of slots (k, n, …), with each left where it lies: (k, m, …)."""

    def __init__(self, stack: np.ndarray | SlotsOnDisk | SomeRows, at_m: np.ndarray) -> None:
        self._stack, self._at_m = stack, at_m

    @property
    def shape(self) -> tuple[int, ...]:
        slots, _, *more = self._stack.shape
        return (slots, len(self._at_m), *more)

    @property
    def dtype(self) -> np.dtype:
        return self._stack.dtype

    def __getitem__(self, slot: int) -> SomeRowsOfSlot:
        return SomeRowsOfSlot(self._stack[slot], self._at_m)


class SomeRowsOfSlot:
    """One slot of SomeRows: `rows[at]` reads those asked for, `np.array(rows)` all."""

    def __init__(self, slot: np.ndarray | SomeRowsOfSlot, at_m: np.ndarray) -> None:
        self._slot, self._at_m = slot, at_m

    def __getitem__(self, at: Any) -> np.ndarray:
        return self._slot[self._at_m[at]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def mapped(dataset: h5py.Dataset) -> np.ndarray:
    """The whole of `dataset`, read-only; pages come from disk when they are looked at. It outlives the opened file.

    Raises ValueError for a dataset that HDF5 does not keep in one piece.
    """
    if 0 in dataset.shape:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if offset is None:
        raise ValueError(f"{dataset.name} is not contiguous")
    # of the file that HDF5 has open: another may have taken its name since
    with os.fdopen(os.dup(dataset.file.id.get_vfd_handle()), "rb") as file:
        # a plain array over the map: slicing a np.memmap costs microseconds
        return np.asarray(np.memmap(file, dataset.dtype, "r", offset, dataset.shape))
