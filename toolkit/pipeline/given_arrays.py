"""Arrays that somebody else computed: .npy files, mapped and not read whole, checked to be logits or features.

Shapes: k slots, n rows, c classes, d features, b rows of a block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.probabilities import look_like_probabilities
from toolkit.formats.blocks import BLOCK_ROWS

_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_FEATURE = float(np.finfo(np.float16).max)

Tick = Callable[[int], None]


@dataclass(frozen=True)
class GivenTable:
    """A table (n, d) of floats in a file, or one slot of a (k, n, c) file. `name` says which in errors."""

    name: str
    array_nd: np.ndarray

    @property
    def blocks(self) -> Iterator[np.ndarray]:
        return (self.block(number) for number in range(-(-len(self.array_nd) // BLOCK_ROWS)))

    def block(self, number: int) -> np.ndarray:
        """(b, d) float32, or float64 where the file is."""
        block_bd = self.array_nd[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        return np.asarray(block_bd, dtype=np.float64 if block_bd.dtype.itemsize == 8 else np.float32)


def open_slots(paths: Sequence[Path], rows: int, classes: int, what: str) -> list[GivenTable]:
    """The slots that `paths` hold: a file (n, c) for each, or one file (k, n, c). `what` the rows are, for errors.

    Raises FailureError for files that can't be read, or of another shape.
    """
    arrays = [(path, _mapped(path, "--logits")) for path in paths]
    (first, array), one = arrays[0], len(arrays) == 1
    expected = f"({rows}, {classes})" + (f" or (slots, {rows}, {classes})" if one else "")
    for path, found in arrays:
        _check_floats(path, found, (rows, classes), expected, f"a row of logits for each {what}, in order", one)
    if array.ndim == 2:
        return [GivenTable(str(path), found) for path, found in arrays]
    return [GivenTable(f"{first}, slot {slot}", array[slot]) for slot in range(len(array))]


def open_table(path: Path, option: str, rows: int, columns: int | None, what: str) -> GivenTable:
    """A file (n, c), or of any width where `columns` is None. Raises FailureError as `open_slots`."""
    array = _mapped(path, option)
    wide = array.shape[-1] if columns is None and array.ndim == 2 else columns
    expected = f"({rows}, {'features' if columns is None else columns})"
    _check_floats(path, array, (rows, wide or 1), expected, f"a row for each {what}, in order", False)
    return GivenTable(str(path), array)


def _mapped(path: Path, option: str) -> np.ndarray:
    """Raises FailureError for anything but a .npy file of numbers."""
    if not path.is_file():
        raise FailureError(f"{path}: not found. Name a .npy file after {option}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        said = " ".join(str(error).split())[:160]
        # numpy advises to load it unsafely
        unsafe = "pickle" in said or "Python objects" in said
        reason = "none, or of Python objects, which are never loaded" if unsafe else said or type(error).__name__
        raise FailureError(f"{path}: not a .npy file of floats ({reason}). Save it by numpy.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise FailureError(f"{path}: several arrays in one archive, expected a .npy file. Save it by numpy.save")
    return array


def _check_floats(
    path: Path, array: np.ndarray, shape: tuple[int, int], expected: str, meaning: str, slots_too: bool
) -> None:
    right = array.shape == shape or (slots_too and array.ndim == 3 and len(array) > 0 and array.shape[1:] == shape)
    if not right or array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise FailureError(
            f"{path}: {array.dtype} of shape {array.shape}, expected float16, float32 or float64 of shape {expected}: "
            f"{meaning}"
        )


def check_logits(table: GivenTable, tick: Tick = lambda rows: None) -> str:
    """Reads all of it once; returns its fingerprint. Raises FailureError for numbers that are not finite, or too large
    for float32, and UsageError where every row looks like probabilities."""
    probabilities = True

    def look(block_bc: np.ndarray) -> None:
        nonlocal probabilities
        probabilities = probabilities and look_like_probabilities(block_bc)
        tick(len(block_bc))

    digest = _read(table, _LARGEST, "float32", look)
    if probabilities:
        raise UsageError(
            f"{table.name}: its rows look like probabilities (all from 0 to 1, summing to 1). Give logits, or their "
            "logarithms: numpy.log(numpy.maximum(p, 1e-12))"
        )
    return digest


def check_features(table: GivenTable, tick: Tick = lambda rows: None) -> str:
    """As `check_logits`: features are kept as float16, and may be anything within its range."""
    return _read(table, _LARGEST_FEATURE, "float16", lambda block_bd: tick(len(block_bd)))


def _read(table: GivenTable, largest: float, dtype: str, look: Callable[[np.ndarray], None]) -> str:
    digest = hashlib.sha256(f"{table.array_nd.dtype.str} {table.array_nd.shape}".encode())
    for number, block_bd in enumerate(table.blocks):
        if not np.abs(block_bd).max(initial=0) <= largest:  # so written, it refuses what is not a number too
            wrong_b = ~(np.abs(block_bd) <= largest).all(axis=1)
            at, finite = int(np.flatnonzero(wrong_b)[0]), bool(np.isfinite(block_bd).all())
            why = f"beyond ±{largest:,.6g}, which {dtype} can't hold" if finite else "not all finite"
            row = number * BLOCK_ROWS + at
            raise FailureError(f"{table.name}: its numbers for row {row} are {why}. Mend the file")
        digest.update(np.ascontiguousarray(block_bd).data)
        look(block_bd)
    return digest.hexdigest()[:16]
