"""What an HDF5 file of kdtool is, told by its schema, and its checksums whatever it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from toolkit.formats.appending import DAMAGE
from toolkit.formats.blocks import BlockReader, opened


def h5_kind(path: Path) -> str:
    """`dynamics`, `scores` or `weights`, as the schema `kdtool <kind> <version>` says; `cache` for everything else:
    whoever opens it as a cache is told what is wrong with it."""
    try:
        with h5py.File(path, "r") as file:
            words = str(file.attrs.get("schema", "")).split()
    except (OSError, *DAMAGE):
        return "cache"
    return words[1] if len(words) == 3 and words[0] == "kdtool" else "cache"


@contextmanager
def open_blocks(path: Path, made_by: str) -> Iterator[tuple[dict[str, Any], BlockReader]]:
    """The record and the blocks of a file of any kind. Raises FailureError when it can't be read."""
    with opened(path, made_by, "a file of kdtool", lambda file: json.loads(str(file.attrs.get("record", "")))) as (
        file,
        record,
    ):
        yield record, BlockReader(file, path, made_by)
