"""FFCV's .beton files read and cut without importing FFCV, which costs seconds.

Layout, version 2: header, field descriptions, one metadata record a row, pages of pixels, and a table of allocations at
the end. kdtool's files hold three fields: `image` (RGB, raw uint8 or JPEG), `label`, and `row`, the row's number in the
data set it was packed from, which a subset keeps.

Shapes: n rows of the file, m rows of a cut, h and w height and width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, whole_file

FIELDS = ("image", "label", "row")
PAGE_BYTES = 1 << 21  # FFCV's smallest: a small data set should make a small file
_SYNC_PAGES = 8  # after how many more a cut tells the disk to begin

_VERSION = 2
_JPEG, _RAW = 0, 1
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_bytes", "<u4"), ("rows", "<u8"), ("table", "<u8")], align=True
)
_FIELD = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
_RECORD = np.dtype([("image", _IMAGE), ("label", "<i8"), ("row", "<i8")], align=True)
_ALLOCATION = np.dtype([("row", "<u8"), ("ptr", "<u8"), ("bytes", "<u8")])


@dataclass(frozen=True)
class Beton:
    """An opened file: `records_n` has label, row and image (mode, width, height, ptr); `bytes_n` each image's size."""

    path: Path
    page_bytes: int
    field_bytes: bytes
    records_n: np.ndarray
    bytes_n: np.ndarray

    def __len__(self) -> int:
        return len(self.records_n)

    @cached_property
    def content(self) -> np.ndarray:
        """The whole file as bytes, mapped."""
        return np.asarray(np.memmap(self.path, dtype=np.uint8, mode="r"))  # slices of a memmap cost 2 µs each

    @property
    def labels_n(self) -> np.ndarray:
        return self.records_n["label"]

    @property
    def rows_n(self) -> np.ndarray:
        return self.records_n["row"]

    @cached_property
    def sizes_n2(self) -> np.ndarray:
        """Each image's height and width: (n, 2) int64."""
        images = self.records_n["image"]
        return np.stack([images["height"], images["width"]], axis=1).astype(np.int64)

    @cached_property
    def raw(self) -> bool:
        """Whether every frame is stored as its pixels, so that nobody need decode it."""
        return bool(np.all(self.records_n["image"]["mode"] == _RAW))

    def need_one_size(self) -> None:
        """Raises FailureError where frames differ in size: FFCV decodes whole ones into buffers of the first one's."""
        if np.any(self.sizes_n2 != self.sizes_n2[:1]):
            raise FailureError(f"{self.path}: its frames differ in size, and only resized crops can be cut from such")

    def frames(self, rows_m: np.ndarray | None = None) -> np.ndarray:
        """The raw frames of the file's rows `rows_m` (default: all), copied: (m, h, w, 3) uint8.

        Raises FailureError when frames are JPEG or differ in size: those need FFCV's Loader.
        """
        images = self.records_n["image"] if rows_m is None else self.records_n["image"][rows_m]
        if len(images) == 0:
            raise FailureError(f"{self.path}: holds no rows. Pack it again: kdtool pack --force")
        height, width = int(images["height"][0]), int(images["width"][0])
        if np.any(images["mode"] != _RAW) or np.any(images["height"] != height) or np.any(images["width"] != width):
            raise FailureError(f"{self.path}: frames are not all raw and of one size, so they cannot be mapped")
        frames = sliding_window_view(self.content, height * width * 3)[images["ptr"].astype(np.int64)]
        return frames.reshape(-1, height, width, 3)

    def content_fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over sizes, labels, row numbers and stored pixels, in row order.

        FFCV's parallel writer lays pages out in no fixed order, so the file's own bytes would not do.
        """
        digest = hashlib.sha256(_identity(self.records_n))
        for pixels in _stored(self, np.arange(len(self))):
            digest.update(pixels)
        return digest.hexdigest()[:16]


def _identity(records_n: np.ndarray) -> bytes:
    """What a fingerprint hashes before the pixels."""
    images = records_n["image"]
    columns = (images["mode"], images["height"], images["width"], records_n["label"], records_n["row"])
    return np.stack(columns).astype("<i8").tobytes()


def _stored(source: Beton, rows_m: np.ndarray) -> Iterator[memoryview]:
    """The stored bytes of each of the rows, in the order given, mapped."""
    content = source.content.data
    starts = source.records_n["image"]["ptr"][rows_m].tolist()
    for start, size in zip(starts, source.bytes_n[rows_m].tolist(), strict=True):
        yield content[start : start + size]


def open_beton(path: Path, made_by: str = "kdtool pack") -> Beton:
    """Reads the tables of `path` and checks that they are whole and within the file.

    Raises FailureError (what, found, what next) for a missing, foreign or truncated file.
    """

    def broken(found: str) -> FailureError:
        return FailureError(f"{path}: {found}. Make it again: {made_by}")

    if not path.is_file():
        raise FailureError(f"{path}: not found. Run: {made_by}")
    size = path.stat().st_size
    if size < _HEADER.itemsize:
        raise broken(f"not an FFCV file: {size} bytes")
    header = np.fromfile(path, dtype=_HEADER, count=1)[0]
    if header["version"] != _VERSION or header["fields"] != len(FIELDS):
        raise broken(f"not an FFCV file of version {_VERSION} with the fields {', '.join(FIELDS)}")
    rows, table = int(header["rows"]), int(header["table"])
    records_at = _HEADER.itemsize + len(FIELDS) * _FIELD.itemsize
    expected = table + rows * _ALLOCATION.itemsize
    if table < records_at + rows * _RECORD.itemsize or size != expected:
        raise broken(f"truncated or overwritten: {size:,} bytes where its header promises {expected:,}")
    fields = np.fromfile(path, dtype=_FIELD, count=len(FIELDS), offset=_HEADER.itemsize)
    names = tuple(bytes(name).rstrip(b"\0").decode("ascii", "replace") for name in fields["name"])
    if names != FIELDS:
        raise broken(f"holds the fields {', '.join(names)}, kdtool's hold {', '.join(FIELDS)}")
    records_n = np.fromfile(path, dtype=_RECORD, count=rows, offset=records_at)
    allocations = np.fromfile(path, dtype=_ALLOCATION, count=rows, offset=table)
    named_n = np.zeros(rows, dtype=bool)
    named_n[allocations["row"][allocations["row"] < rows]] = True
    if not named_n.all():  # there are as many entries as rows
        raise broken("truncated or overwritten: its table does not name each row once")
    bytes_n = np.empty(rows, dtype=np.int64)
    bytes_n[allocations["row"].astype(np.int64)] = allocations["bytes"]
    images = records_n["image"]
    room = table - bytes_n.clip(0, table)  # where a frame may begin; kept apart from ptr, whose sum could overflow
    if np.any(bytes_n < 0) or np.any(bytes_n > table) or np.any(images["ptr"] > room.astype(np.uint64)):
        raise broken("truncated or overwritten: a frame lies beyond the last page")
    if np.any(bytes_n > header["page_bytes"]):
        raise broken("truncated or overwritten: a frame is larger than a page")
    raw_bytes_n = images["height"].astype(np.int64) * images["width"] * 3
    if np.any((images["mode"] == _RAW) & (bytes_n != raw_bytes_n)):
        raise broken("truncated or overwritten: a frame's bytes are not those of its size")
    if not np.isin(images["mode"], (_JPEG, _RAW)).all():
        raise broken("truncated or overwritten: a frame is neither raw nor JPEG")
    return Beton(path, int(header["page_bytes"]), fields.tobytes(), records_n, bytes_n)


def _pages(bytes_m: np.ndarray, page_bytes: int) -> list[int]:
    """The position at which each page's images begin, and m: no image goes across a page's end, as FFCV requires."""
    ends_m, bounds = np.cumsum(bytes_m), [0]
    while bounds[-1] < len(bytes_m):
        before = int(ends_m[bounds[-1] - 1]) if bounds[-1] else 0
        bounds.append(int(np.searchsorted(ends_m, before + page_bytes, side="right")))
    return bounds


def _header(rows: int, page_bytes: int, table: int) -> bytes:
    return np.array([(_VERSION, len(FIELDS), page_bytes, rows, table)], dtype=_HEADER).tobytes()


def cut(source: Beton, rows_m: np.ndarray, path: Path) -> str:
    """Writes the rows `rows_m` of `source`, in that order, byte for byte, as a .beton of its own at `path`; returns its
    content fingerprint.

    The same rows give the same bytes, whatever wrote the source.
    """
    page_bytes = source.page_bytes
    records_m = np.zeros(len(rows_m), dtype=_RECORD)  # so that the bytes between fields are zero too
    records_m[:] = source.records_n[rows_m]
    bytes_m = source.bytes_n[rows_m]
    tables = _HEADER.itemsize + len(source.field_bytes) + records_m.nbytes
    start = -(-tables // page_bytes) * page_bytes
    bounds = _pages(bytes_m, page_bytes)
    starts_m = np.cumsum(bytes_m) - bytes_m
    for page, (first, last) in enumerate(pairwise(bounds)):
        records_m["image"]["ptr"][first:last] = start + page * page_bytes + starts_m[first:last] - starts_m[first]
    table = start + (len(bounds) - 1) * page_bytes
    allocations = np.empty(len(rows_m), dtype=_ALLOCATION)
    allocations["row"], allocations["bytes"] = np.arange(len(rows_m)), bytes_m
    allocations["ptr"] = records_m["image"]["ptr"]

    need_space(path, table + allocations.nbytes)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(rows_m), page_bytes, table))
        file.write(source.field_bytes)
        file.write(records_m.tobytes())
        file.seek(start)
        pages = (b"".join(_stored(source, rows_m[first:last])) for first, last in pairwise(bounds))
        fingerprint = _write_pages(file, pages, page_bytes, _identity(records_m))
        file.write(allocations.tobytes())
    return fingerprint


def relabelled(source: Beton, labels_n: np.ndarray, path: Path) -> str:
    """Writes `source` with the labels `labels_n`, (n,) integers, as a .beton at `path`, every other byte the same;
    returns its content fingerprint. Raises ValueError for labels of other rows, FailureError for a full disk.
    """
    if labels_n.shape != (len(source),):
        raise ValueError(f"labels of shape {labels_n.shape} for {len(source)} rows")
    records = bytearray(source.records_n.tobytes())  # as bytes: a copy of the array need not keep those between fields
    np.frombuffer(records, dtype=_RECORD)["label"] = labels_n
    start = _HEADER.itemsize + len(source.field_bytes)
    need_space(path, len(source.content))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(source.content[:start].data)
        file.write(records)
        file.write(source.content[start + len(records) :].data)
    return open_beton(path).content_fingerprint()


def _write_pages(file: BinaryIO, pages: Iterable[bytes], page_bytes: int, identity: bytes) -> str:
    """Writes the pages, each filled up with zeros, and returns the content fingerprint.

    One thread hashes a page while the next is gathered and written; another has the disk begin with what is there,
    which would all wait for the end. Two pages are held, however large the file.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=2) as threads:
        hashed, synced = threads.submit(digest.update, identity), threads.submit(os.fsync, file.fileno())
        for number, page in enumerate(pages, 1):
            file.write(page)
            file.write(bytes(page_bytes - len(page)))
            hashed.result()
            hashed = threads.submit(digest.update, page)
            if number % _SYNC_PAGES == 0:
                synced.result()
                synced = threads.submit(os.fsync, file.fileno())
        hashed.result()
        synced.result()
    return digest.hexdigest()[:16]
