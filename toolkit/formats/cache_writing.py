"""Writing what formats/cache.py reads: a cache or targets that appear whole, or grow by whole datasets.

Shapes: n rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.core.files import DeferringFile, whole_file
from toolkit.formats.appending import LIBVER, appending
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.cache import SCHEMA, CacheRecord


class CacheWriter:
    """Writes datasets block by block, each with its checksums. See `new_cache`."""

    def __init__(self, file: h5py.File, disk: DeferringFile) -> None:
        self._file, self._disk = file, disk

    def write(self, name: str, array: np.ndarray, **attributes: Any) -> None:
        blocks = (array[start : start + BLOCK_ROWS] for start in range(0, len(array), BLOCK_ROWS))
        self.write_blocks(name, array.shape, array.dtype, blocks, **attributes)

    def write_blocks(
        self, name: str, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray], **attributes: Any
    ) -> None:
        """`blocks` are consecutive, BLOCK_ROWS rows each but the last."""
        dataset = self._file.create_dataset(name, shape=shape, dtype=dtype)
        checksums, start = [], 0
        for block in blocks:
            block = np.ascontiguousarray(block, dtype=dtype)
            dataset[start : start + len(block)] = block
            checksums.append(zlib.crc32(block.data))
            start += len(block)
        if start != shape[0]:
            raise ValueError(f"{name}: {start} rows written, {shape[0]} promised")
        dataset.attrs.update(attributes)
        self._file.create_dataset(f"checksums/{name}", data=np.array(checksums, dtype=np.uint32))
        self._disk.check()

    def replace(self, name: str, array: np.ndarray, **attributes: Any) -> None:
        """Writes `array` in the place of a dataset of a cache that grows. The old one's attributes are not kept."""
        del self._file[name], self._file[f"checksums/{name}"]
        self.write(name, array, **attributes)


@contextmanager
def new_blocks(path: Path, schema: int | str, record: dict[str, Any]) -> Iterator[CacheWriter]:
    """A file of blocks that appears at `path` whole, when the block ends without an error."""
    with (
        whole_file(path) as temporary,
        DeferringFile(temporary) as disk,
        h5py.File(disk, "w", libver=LIBVER) as file,  # from 1.8 on, HDF5 checksums its own tables
    ):
        file.attrs["schema"] = schema
        file.attrs["record"] = json.dumps(record)
        yield CacheWriter(file, disk)


def new_cache(path: Path, record: CacheRecord) -> AbstractContextManager[CacheWriter]:
    """A cache that appears at `path` whole, when the block ends without an error."""
    return new_blocks(path, SCHEMA, record.to_record())


@contextmanager
def grown_cache(
    path: Path, record: CacheRecord, made_by: str = "kdtool cache-teacher --force"
) -> Iterator[CacheWriter]:
    """The cache at `path` with `record` and more datasets, when the block ends without an error, else as it was.

    What it holds is neither moved nor rewritten (see `appending`), and readers that have it open keep it as it was.
    One process at a time: hold `only_writer`. Raises FailureError when `path` is damaged or the disk is full.
    """
    with appending(path, made_by) as (root, disk):
        root.attrs["schema"] = SCHEMA
        root.attrs["record"] = json.dumps(record.to_record())
        yield CacheWriter(root, disk)
