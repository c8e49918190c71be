"""HDF5 files of checksummed datasets: contiguous, with a CRC-32 of every BLOCK_ROWS rows in /checksums/<dataset>.

Caches, targets, dynamics and scores are such files; what they were made from stands in the attribute `record`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.hashing import fingerprint
from toolkit.core.records import record_of
from toolkit.formats.appending import DAMAGE

BLOCK_ROWS = 8192

R = TypeVar("R")


class BlockReader:
    """An opened file. Blocks are checked against their checksums as they are read; `made_by` makes the file again."""

    def __init__(self, file: h5py.File, path: Path, made_by: str) -> None:
        self._file, self.path, self.made_by = file, path, made_by

    def _unreadable(self, name: str, error: BaseException) -> FailureError:
        return FailureError(f"{self.path}: /{name} can't be read ({reason(error)}). Run: {self.made_by}")

    def _dataset(self, name: str) -> h5py.Dataset:
        try:
            if name in self._file and f"checksums/{name}" in self._file:
                return self._file[name]
        except DAMAGE as error:
            raise self._unreadable(name, error) from error
        raise FailureError(f"{self.path}: lacks /{name}. Run: {self.made_by}")

    def block(self, name: str, number: int) -> np.ndarray:
        """Block `number` of a dataset. Raises FailureError when it is not what was written."""
        dataset = self._dataset(name)
        try:
            block = dataset[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
            expected = int(self._file[f"checksums/{name}"][number])
        except DAMAGE as error:
            raise self._unreadable(name, error) from error
        if zlib.crc32(np.ascontiguousarray(block).data) != expected:
            raise FailureError(
                f"{self.path}: /{name}, rows from {number * BLOCK_ROWS}, fails its checksum. Run: {self.made_by}"
            )
        return block

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        for number in range(-(-self._dataset(name).shape[0] // BLOCK_ROWS)):
            yield self.block(name, number)

    def read(self, name: str, positions: np.ndarray | None = None) -> np.ndarray:
        """A dataset, or its increasing `positions`, read front to back."""
        dataset, start = self._dataset(name), 0
        rows = dataset.shape[0] if positions is None else len(positions)
        values = np.empty((rows, *dataset.shape[1:]), dataset.dtype)
        for block in self.blocks(name) if positions is None else self.read_blocks(name, positions):
            values[start : start + len(block)] = block
            start += len(block)
        return values

    def read_blocks(self, name: str, positions: np.ndarray) -> Iterator[np.ndarray]:
        """The increasing `positions` of a dataset, BLOCK_ROWS rows at a time, never holding more than two blocks."""
        for start in range(0, len(positions), BLOCK_ROWS):
            wanted = positions[start : start + BLOCK_ROWS]
            number_of = wanted // BLOCK_ROWS
            yield np.concatenate(
                [self.block(name, int(n))[wanted[number_of == n] - n * BLOCK_ROWS] for n in np.unique(number_of)]
            )

    def dataset_names(self) -> list[str]:
        names: list[str] = []
        try:
            self._file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        except DAMAGE as error:
            raise self._unreadable("", error) from error
        return [name for name in names if not name.startswith("checksums/")]

    def checksums(self, name: str) -> bytes:
        """Those of all blocks of a dataset. Raises FailureError when it is missing."""
        self._dataset(name)
        try:
            return self._file[f"checksums/{name}"][()].tobytes()
        except DAMAGE as error:
            raise self._unreadable(f"checksums/{name}", error) from error

    def contents_fingerprint(self, *names: str) -> str:
        """16 hexadecimal digits over the names and the checksums of datasets. Raises FailureError for a missing one."""
        return fingerprint(*(part for name in names for part in (name, self.checksums(name))))

    def verify(self) -> int:
        """Reads every block of every dataset against its checksum; returns how many."""
        return sum(1 for name in self.dataset_names() for _ in self.blocks(name))


def reason(error: BaseException) -> str:
    """An error of h5py in one short line."""
    return (str(error.args[0] if error.args else "").splitlines() or [type(error).__name__])[0][:160]


@contextmanager
def opened(path: Path, made_by: str, kind: str, checked: Callable[[h5py.File], R]) -> Iterator[tuple[h5py.File, R]]:
    """The file, and its record by `checked`, which may raise anything of DAMAGE for what is not of its `kind`.

    Raises FailureError (what, found, what next) when `path` is missing, truncated or of another kind.
    """
    if not path.is_file():
        raise FailureError(f"{path}: not found. Run: {made_by.removesuffix(' --force')}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise FailureError(f"{path}: not a readable HDF5 file ({reason(error)}). Run: {made_by}") from error
    with file:
        try:
            record = checked(file)
        except (*DAMAGE, FailureError) as error:
            raise FailureError(f"{path}: not {kind} of this version ({reason(error)}). Run: {made_by}") from error
        yield file, record


def record_in(file: h5py.File, schema: str, cls: type[R]) -> R:
    """The file's record. Raises ValueError when it is not there, or not of this schema."""
    found = file.attrs.get("schema", "none")
    if not isinstance(found, str) or found != schema:
        raise ValueError(f"expected schema '{schema}', found {found}")
    return record_of(cls, json.loads(str(file.attrs.get("record", ""))))


def check_shapes(file: h5py.File, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises ValueError for a dataset that is not there, or of another shape."""
    for name, shape in shapes.items():
        found = file[name].shape if name in file else None
        if found is None:
            raise ValueError(f"lacks /{name}")
        if found != shape:
            raise ValueError(f"/{name} is of shape {found}, not {shape}")
