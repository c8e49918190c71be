"""JSON whose lists of integers may have millions: written and read a block at a time, and held as arrays.

What is written is what json.dumps would write.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.files import read_json, whole_file

_BLOCK = 1 << 16  # numbers
_BLOCK_BYTES = 1 << 19
_PLAIN = re.compile(rb"[0-9]{1,18}(?:, [0-9]{1,18})*")


def write_long_lists(path: Path, record: dict[str, Any]) -> None:
    """Writes `record`, whose arrays (n,) of integers become lists, as one line of JSON."""
    with whole_file(path) as temporary, temporary.open("w") as file:
        for number, (name, value) in enumerate(record.items()):
            file.write(f"{', ' if number else '{'}{json.dumps(name)}: ")
            file.writelines(_list(value) if isinstance(value, np.ndarray) else [json.dumps(value)])
        file.write("}\n")


def _list(values_n: np.ndarray) -> Iterator[str]:
    yield "["
    for start in range(0, len(values_n), _BLOCK):
        yield ", " * (start > 0) + ", ".join(map(str, values_n[start : start + _BLOCK].tolist()))
    yield "]"


def read_long_lists(path: Path, names: Iterable[str], made_by: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record in `path`, and those of its lists in `names` that are of integers from 0 up and written as above, as
    arrays, (n,) of the smallest type: in the record they are empty. Lists written otherwise stay in the record.

    Raises FailureError, naming the command `made_by`, when it is missing or not JSON."""
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            places = {name: _place(text, name) for name in names}
            found = {name: _integers(text, *place) for name, place in places.items() if place is not None}
            arrays = {name: values_n for name, values_n in found.items() if values_n is not None}
            shorter, at = b"", 0
            for start, end in sorted(place for name, place in places.items() if place is not None and name in arrays):
                shorter, at = shorter + text[at:start], end
            record = json.loads(shorter + text[at:])
    except (OSError, ValueError):  # an empty file can't be mapped
        return read_json(path, made_by), {}
    if not isinstance(record, dict) or any(record.get(name) != [] for name in arrays):
        return read_json(path, made_by), {}
    return record, arrays


def _place(text: mmap.mmap, name: str) -> tuple[int, int] | None:
    """Where the numbers of a list begin and end."""
    mark = f"{json.dumps(name)}: [".encode()
    at = text.find(mark)
    end = -1 if at < 0 else text.find(b"]", at)
    return None if end < 0 else (at + len(mark), end)


def _integers(text: mmap.mmap, start: int, end: int) -> np.ndarray | None:
    """None where these are not all plain numbers."""
    blocks = []
    while start < end:
        stop = end if end - start <= _BLOCK_BYTES else text.find(b",", start + _BLOCK_BYTES, end)
        stop = end if stop < 0 else stop
        block = text[start:stop]
        if not _PLAIN.fullmatch(block):
            return None
        values_b = np.fromstring(block, dtype=np.int64, sep=",")
        blocks.append(values_b.astype(np.int32) if values_b.max() < 1 << 31 else values_b)
        start = stop + len(b", ")
    return np.concatenate(blocks) if blocks else np.empty(0, dtype=np.int32)
