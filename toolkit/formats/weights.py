"""weights.h5 of a bundle: how much each of its rows counts, where the method that chose them says so.

    /rows (m,) int64         the rows' numbers in the packed data, increasing: the order of the images
    /weights (m,) float32    finite, at least 0, mean 1
    /checksums/<dataset>     CRC-32 of every block of rows, uint32

Shapes: m rows of the subset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.hashing import fingerprint
from toolkit.formats.blocks import BlockReader, opened
from toolkit.formats.cache_writing import new_blocks

WEIGHTS = "weights.h5"
_SCHEMA = "kdtool weights 1"


@dataclass(frozen=True)
class _WeightsRecord:
    method: str


def weights_fingerprint(weights_m: np.ndarray) -> str:
    """Of the weights as they are stored, in float32."""
    return fingerprint(np.ascontiguousarray(weights_m, dtype="<f4"))


def write_weights(path: Path, rows_m: np.ndarray, weights_m: np.ndarray, method: str) -> None:
    """A file that appears whole. Raises ValueError for weights that are not one of each row, finite and at least 0."""
    flaw = _flaw(weights_m, len(rows_m))
    if flaw:
        raise ValueError(f"weights by {method}: {flaw}")
    with new_blocks(path, _SCHEMA, asdict(_WeightsRecord(method))) as out:
        out.write("rows", np.asarray(rows_m, dtype=np.int64))
        out.write("weights", np.asarray(weights_m, dtype=np.float32))


def read_weights(path: Path, rows_m: np.ndarray, made_by: str) -> np.ndarray:
    """The weights of exactly these rows: (m,) float32.

    Raises FailureError where the file is missing, damaged, of other rows, or holds weights that cannot be.
    """
    with opened(path, made_by, "weights", _check_schema) as (file, _):
        reader = BlockReader(file, path, made_by)
        if not np.array_equal(reader.read("rows"), rows_m):
            raise FailureError(f"{path}: weighs other rows than the subset's. Run: {made_by}")
        weights_m = reader.read("weights")
    flaw = _flaw(weights_m, len(rows_m)) or ("" if weights_m.dtype == np.float32 else f"they are {weights_m.dtype}")
    if flaw:
        raise FailureError(f"{path}: {flaw}. Run: {made_by}")
    return weights_m


def _check_schema(file: h5py.File) -> None:
    if not np.array_equal(file.attrs.get("schema", "none"), _SCHEMA):
        raise ValueError(f"expected schema '{_SCHEMA}', found '{file.attrs.get('schema', 'none')}'")


def _flaw(weights_m: np.ndarray, rows: int) -> str:
    """What is wrong with weights, or nothing."""
    if weights_m.shape != (rows,) or weights_m.dtype.kind != "f":
        return f"weights of shape {weights_m.shape} and type {weights_m.dtype} for {rows} rows"
    wrong = np.flatnonzero(~(np.isfinite(weights_m) & (weights_m >= 0)))
    return f"weight {wrong[0]} is {weights_m[wrong[0]]}, not a number from 0" if len(wrong) else ""
