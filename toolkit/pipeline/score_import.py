"""Scores from outside: a .npy file in row order, or a .csv file keyed by row, checked to be of exactly these rows.

Shapes: n training rows.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.hashing import fingerprint

_COLUMNS = ("row", "score", "label", "fingerprint")
_FINGERPRINT = re.compile(r"#\s*fingerprint\s*[:=,]?\s*([0-9a-fA-F]+)\s*", re.ASCII)


def read_import(path: Path, labels_n: np.ndarray, data_fingerprint: str) -> tuple[np.ndarray, str]:
    """(the score of every row (n,) float64, as the file has it; the fingerprint of the file).

    .npy: (n,) numbers in row order. .csv: a header with `row` and `score`, and perhaps `label` and `fingerprint`; the
    latter may also stand in a line `#fingerprint …`. Raises FailureError, naming row and line, unless every training
    row is there once, with a finite number, our label, and our fingerprint.
    """
    readers = {".npy": _from_npy, ".csv": _from_csv}
    if path.suffix.lower() not in readers:
        raise FailureError(f"{path}: expected a file ending in {' or '.join(readers)}, found '{path.suffix}'")
    if not path.is_file():
        raise FailureError(f"{path}: not found. Name a {' or '.join(readers)} file of scores after --import")
    values_n = readers[path.suffix.lower()](path, labels_n, data_fingerprint)
    return values_n, fingerprint(path.read_bytes())


def _from_npy(path: Path, labels_n: np.ndarray, data_fingerprint: str) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FailureError(
            f"{path}: not a readable .npy file of numbers ({_line(error)}). Save it by numpy.save"
        ) from error
    shape = getattr(found, "shape", None)
    if shape != labels_n.shape or found.dtype.kind not in "fiu":
        kind = "no array" if shape is None else f"{found.dtype} of shape {shape}"
        raise FailureError(
            f"{path}: {kind}, expected floats of shape {labels_n.shape}, one for each training row in order"
        )
    values_n = found.astype(np.float64)
    _check_numbers(path, values_n)
    return values_n


def _check_numbers(path: Path, values_n: np.ndarray) -> None:
    """Raises FailureError unless each is finite, and as a float32 too."""
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(~np.isfinite(values_n.astype(np.float32)))
    if len(wrong):
        raise FailureError(
            f"{path}: the score of row {wrong[0]} is {values_n[wrong[0]]}, expected a finite float32 "
            f"({len(wrong):,} rows are wrong). Mend the file"
        )


def _from_csv(path: Path, labels_n: np.ndarray, data_fingerprint: str) -> np.ndarray:
    values_n = np.full(len(labels_n), np.nan)
    seen_n = np.zeros(len(labels_n), dtype=bool)
    try:
        for line, entry in _entries(path, data_fingerprint):
            row = _row(path, line, entry["row"], len(labels_n))
            if seen_n[row]:
                raise FailureError(f"{path}, line {line}: row {row} is there twice. Keep one of them")
            seen_n[row] = True
            values_n[row] = _number(path, line, row, entry["score"])
            _check_label(path, line, row, entry, int(labels_n[row]))
            _check_fingerprint(path, line, entry.get("fingerprint"), data_fingerprint)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, FailureError):
            raise
        raise FailureError(f"{path}: not readable as UTF-8 CSV ({_line(error)}). Mend the file") from error
    missing = np.flatnonzero(~seen_n)
    if len(missing):
        raise FailureError(
            f"{path}: lacks {len(missing):,} of {len(labels_n):,} training rows, the first is row {missing[0]}. "
            "Give every row a score"
        )
    _check_numbers(path, values_n)
    return values_n


def _entries(path: Path, data_fingerprint: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column: text) of every line below the header; lines that begin with # are remarks."""
    columns: list[str] | None = None
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if cells[0].lstrip().startswith("#"):
                told = _FINGERPRINT.fullmatch(",".join(cells).strip())
                _check_fingerprint(path, reader.line_num, told and told[1], data_fingerprint)
            elif columns is None:
                columns = _header(path, [cell.strip().lower() for cell in cells])
            elif len(cells) != len(columns):
                raise FailureError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(columns)}. Mend the file"
                )
            else:
                yield reader.line_num, dict(zip(columns, cells, strict=True))
    if columns is None:
        raise FailureError(f"{path}: empty, expected a header 'row,score' and a line for every training row")


def _header(path: Path, columns: list[str]) -> list[str]:
    if "path" in columns and "row" not in columns:
        raise FailureError(
            f"{path}: keyed by path, but packed data keep no paths, only row numbers: positions in train.beton. "
            "Make it a column 'row', from 0"
        )
    if not {"row", "score"} <= set(columns) or len(set(columns)) < len(columns):
        raise FailureError(
            f"{path}: its header is '{','.join(columns)[:80]}', expected 'row,score', and perhaps label and fingerprint"
        )
    return columns


def _row(path: Path, line: int, text: str, rows: int) -> int:
    if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII) or int(text) >= rows:
        raise FailureError(
            f"{path}, line {line}: row '{text.strip()[:40]}', expected 0 to {rows - 1}, a training row's number"
        )
    return int(text)


def _number(path: Path, line: int, row: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FailureError(f"{path}, line {line}: the score of row {row} is '{text.strip()[:40]}', expected a number")
    return value


def _check_label(path: Path, line: int, row: int, entry: dict[str, str], label: int) -> None:
    found = entry.get("label")
    if found is not None and found.strip() != str(label):
        raise FailureError(
            f"{path}, line {line}: row {row} has label '{found.strip()[:40]}', here {label}. "
            "These scores are of another data set, or of another order. Give those of this one"
        )


def _check_fingerprint(path: Path, line: int, found: str | None, expected: str) -> None:
    if found is not None and found.strip().lower() != expected:
        raise FailureError(
            f"{path}, line {line}: scores of the data {found.strip()[:40]}, but these are {expected} (data.json tells)"
        )


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
