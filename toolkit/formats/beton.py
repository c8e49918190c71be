"""FFCV's .beton files read and cut without importing FFCV, which costs seconds.

Layout, version 2: header, field descriptions, one metadata record a row, pages of pixels, and a table of allocations at
the end. kdtool's files hold three fields: `image` (RGB, raw uint8 or JPEG), `label`, and `row`, the row's number in the
data set it was packed from, which a subset keeps.

The records are mapped, and tables are checked and written a block of rows at a time: of an opened file 4 bytes a row
are held, and of one that is written 24.

Shapes: n rows of the file, m rows of a cut, h and w height and width.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, whole_file
from toolkit.core.hashing import smallest_index

FIELDS = ("image", "label", "row")
_TABLE_BYTES = 40  # a row, of FFCV's tables
PAGE_BYTES = 1 << 21  # FFCV's smallest: a small data set should make a small file
_SYNC_PAGES = 8  # after how many more a cut tells the disk to begin
_BLOCK_ROWS = 1 << 16

_VERSION = 2
_JPEG, _RAW = 0, 1
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_bytes", "<u4"), ("rows", "<u8"), ("table", "<u8")], align=True
)
_FIELD = np.dtype([("type", "<u1"), ("name", "<u1", 16), ("arguments", "<u1", 1024)], align=True)
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("ptr", "<u8")])
_RECORD = np.dtype([("image", _IMAGE), ("label", "<i8"), ("row", "<i8")], align=True)
_ALLOCATION = np.dtype([("row", "<u8"), ("ptr", "<u8"), ("bytes", "<u8")])

_MOST_BYTES = 0xFFFFFFFF  # of a frame: pages are smaller

Records = Callable[[slice], np.ndarray]  # those of a block of rows


@dataclass(frozen=True)
class Beton:
    """An opened file: `records_n` has label, row and image (mode, width, height, ptr), mapped from disk, where writing
    to it changes nothing; `bytes_n` uint32 is each image's size in bytes."""

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
        """Each image's height and width: (n, 2) uint16."""
        images = self.records_n["image"]
        return np.stack([images["height"], images["width"]], axis=1)

    @cached_property
    def raw(self) -> bool:
        """Whether every frame is stored as its pixels, so that nobody need decode it."""
        return bool(np.all(self.records_n["image"]["mode"] == _RAW))

    def need_one_size(self) -> None:
        """Raises FailureError where frames differ in size: FFCV decodes whole ones into buffers of the first one's."""
        if np.any(self.sizes_n2 != self.sizes_n2[:1]):
            raise FailureError(
                f"{self.path}: its frames differ in size, and only resized crops can be cut from such. "
                "Pack it with --family resized-crop"
            )

    def frames(self, rows_m: np.ndarray | None = None) -> np.ndarray:
        """The raw frames of the file's rows `rows_m` (default: all), copied: (m, h, w, 3) uint8.

        Raises FailureError when frames are JPEG or differ in size: those need FFCV's Loader.
        """
        images = self.records_n["image"] if rows_m is None else self.records_n["image"][rows_m]
        if len(images) == 0:
            raise FailureError(f"{self.path}: holds no rows. Pack it again: kdtool pack --force")
        height, width = int(images["height"][0]), int(images["width"][0])
        if np.any(images["mode"] != _RAW) or np.any(images["height"] != height) or np.any(images["width"] != width):
            raise FailureError(
                f"{self.path}: frames are not all raw and of one size, so they cannot be mapped. Use --source stream"
            )
        frames = sliding_window_view(self.content, height * width * 3)[images["ptr"].astype(np.int64)]
        return frames.reshape(-1, height, width, 3)

    def content_fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over sizes, labels, row numbers and stored pixels, in row order.

        FFCV's parallel writer lays pages out in no fixed order, so the file's own bytes would not do.
        """
        digest = hashlib.sha256()
        _hash_identity(digest, lambda block: self.records_n[block], len(self))
        for pixels in _stored(self, range(len(self))):
            digest.update(pixels)
        return digest.hexdigest()[:16]


def _hash_identity(digest: Any, records: Records, rows: int) -> None:
    """What a fingerprint hashes before the pixels: one column after the other."""
    for name in ("mode", "height", "width", "label", "row"):
        for block in _blocks(rows):
            records_b = records(block)
            column_b = records_b[name] if name in FIELDS else records_b["image"][name]
            digest.update(column_b.astype("<i8").tobytes())


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(at, min(at + _BLOCK_ROWS, rows)) for at in range(0, rows, _BLOCK_ROWS))


def _stored(source: Beton, rows_m: np.ndarray | range) -> Iterator[memoryview]:
    """The stored bytes of each of the rows, in the order given, mapped."""
    content = source.content.data
    for block in _blocks(len(rows_m)):
        rows_b = rows_m[block]
        starts = source.records_n["image"]["ptr"][rows_b].tolist()
        for start, size in zip(starts, source.bytes_n[rows_b].tolist(), strict=True):
            yield content[start : start + size]


def file_bytes(rows: int, bytes_per_row: float, page_bytes: int = PAGE_BYTES) -> int:
    """About what a .beton of so many rows takes on disk: whole pages, the first of which holds its head."""
    return page_bytes * (1 + math.ceil(rows * bytes_per_row / page_bytes)) + _TABLE_BYTES * rows


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
    records_n = _mapped_records(path, records_at, rows)
    bytes_n, named_n = np.empty(rows, dtype=np.uint32), np.zeros(rows, dtype=bool)
    for block in _blocks(rows):
        count, offset = block.stop - block.start, table + block.start * _ALLOCATION.itemsize
        allocations = np.fromfile(path, dtype=_ALLOCATION, count=count, offset=offset)
        allocations = allocations[allocations["row"] < rows]
        at = allocations["row"].astype(np.int64)
        named_n[at], bytes_n[at] = True, allocations["bytes"].clip(max=_MOST_BYTES)
    if not named_n.all():  # there are as many entries as rows
        raise broken("truncated or overwritten: its table does not name each row once")
    for block in _blocks(rows):
        wrong = _wrong_frames(records_n["image"][block], bytes_n[block], table, int(header["page_bytes"]))
        if wrong:
            raise broken(f"truncated or overwritten: {wrong}")
    return Beton(path, int(header["page_bytes"]), fields.tobytes(), records_n, bytes_n)


def _mapped_records(path: Path, offset: int, rows: int) -> np.ndarray:
    if rows == 0:
        return np.empty(0, dtype=_RECORD)
    # private: an array that may be written to is what torch takes without a warning
    return np.asarray(np.memmap(path, dtype=_RECORD, mode="c", offset=offset, shape=(rows,)))


def _wrong_frames(images_n: np.ndarray, bytes_n: np.ndarray, table: int, page_bytes: int) -> str:
    """What can't be of one of these frames, or nothing."""
    bytes_n = bytes_n.astype(np.int64)
    room_n = table - bytes_n.clip(0, table)  # where a frame may begin; kept apart from ptr, whose sum could overflow
    if np.any(bytes_n > table) or np.any(images_n["ptr"] > room_n.astype(np.uint64)):
        return "a frame lies beyond the last page"
    if np.any(bytes_n > page_bytes):
        return "a frame is larger than a page"
    raw_bytes_n = images_n["height"].astype(np.int64) * images_n["width"] * 3
    if np.any((images_n["mode"] == _RAW) & (bytes_n != raw_bytes_n)):
        return "a frame's bytes are not those of its size"
    return "" if np.isin(images_n["mode"], (_JPEG, _RAW)).all() else "a frame is neither raw nor JPEG"


def _pages(bytes_m: np.ndarray, page_bytes: int) -> list[int]:
    """The position at which each page's images begin, and m: no image goes across a page's end, as FFCV requires."""
    bounds, open_bytes = [0], 0
    for block in _blocks(len(bytes_m)):
        ends = np.cumsum(bytes_m[block], dtype=np.int64) + open_bytes
        before = 0  # bytes that are in pages that are full
        while (first := int(np.searchsorted(ends, before + page_bytes, side="right"))) < len(ends):
            bounds.append(block.start + first)
            before = int(ends[first] - bytes_m[block.start + first])
        open_bytes = int(ends[-1]) - before
    return [*bounds, len(bytes_m)] if len(bytes_m) else bounds


def _header(rows: int, page_bytes: int, table: int) -> bytes:
    return np.array([(_VERSION, len(FIELDS), page_bytes, rows, table)], dtype=_HEADER).tobytes()


def cut(source: Beton, rows_m: np.ndarray, path: Path) -> str:
    """Writes the rows `rows_m` of `source`, in that order, byte for byte, as a .beton of its own at `path`; returns its
    content fingerprint.

    The same rows give the same bytes, whatever wrote the source. Raises FailureError for a full disk.
    """

    def records(block: slice) -> np.ndarray:
        records_b = np.zeros(block.stop - block.start, dtype=_RECORD)  # so that the bytes between fields are zero too
        records_b[:] = source.records_n[rows_m[block]]
        return records_b

    return _write(path, source, records, source.bytes_n[rows_m], _stored(source, rows_m))


def join(pieces: Sequence[tuple[Path, Sequence[int]]], path: Path) -> str:
    """Writes all rows of several files but those named beside each, file after file and byte for byte, numbered anew
    from 0, as one .beton at `path`; returns its content fingerprint.

    Raises FailureError for a damaged file, a full disk, or where no row is left.
    """
    kept = [
        (source, _all_but(source, left_out)) for source, left_out in ((open_beton(one), out) for one, out in pieces)
    ]
    ends = np.cumsum([len(rows) for _, rows in kept]).tolist()
    if not ends or ends[-1] == 0:
        raise FailureError(f"{path}: there are no rows to write. Name one at least")

    def records(block: slice) -> np.ndarray:
        records_b = np.zeros(block.stop - block.start, dtype=_RECORD)
        for (source, rows), end in zip(kept, ends, strict=True):
            start = end - len(rows)
            first, last = max(block.start, start), min(block.stop, end)
            if first < last:
                part = rows[first - start : last - start]
                records_b[first - block.start : last - block.start] = source.records_n[part]
        records_b["row"] = np.arange(block.start, block.stop)
        return records_b

    bytes_m = np.concatenate([source.bytes_n[rows] for source, rows in kept])
    return _write(path, kept[-1][0], records, bytes_m, chain.from_iterable(_stored(*one) for one in kept))


def _all_but(source: Beton, left_out: Sequence[int]) -> np.ndarray:
    kept_n = np.ones(len(source), dtype=bool)
    kept_n[np.asarray(left_out, dtype=np.int64)] = False
    return np.flatnonzero(kept_n).astype(smallest_index(len(source)))


def _write(path: Path, like: Beton, records: Records, bytes_m: np.ndarray, stored: Iterator[memoryview]) -> str:
    """Writes a .beton of images stored as `stored`, with the pages' size and fields of `like`; its fingerprint. Where
    the images of `records` lie is filled in."""
    page_bytes, rows = like.page_bytes, len(bytes_m)
    tables = _HEADER.itemsize + len(like.field_bytes) + rows * _RECORD.itemsize
    start = -(-tables // page_bytes) * page_bytes
    bounds, ptr_m = _pages(bytes_m, page_bytes), np.empty(rows, dtype=np.uint64)
    for page, (first, last) in enumerate(pairwise(bounds)):
        before_m = np.cumsum(bytes_m[first:last], dtype=np.int64) - bytes_m[first:last]
        ptr_m[first:last] = start + page * page_bytes + before_m
    table = start + (len(bounds) - 1) * page_bytes

    need_space(path, table + rows * _ALLOCATION.itemsize)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_header(rows, page_bytes, table))
        file.write(like.field_bytes)
        for block in _blocks(rows):
            records_b = records(block)
            records_b["image"]["ptr"] = ptr_m[block]
            file.write(records_b.view(np.uint8).data)
        file.seek(start)
        pages = (b"".join(islice(stored, last - first)) for first, last in pairwise(bounds))
        fingerprint = _write_pages(file, pages, page_bytes, records, rows)
        for block in _blocks(rows):
            allocations = np.empty(block.stop - block.start, dtype=_ALLOCATION)
            allocations["row"] = np.arange(block.start, block.stop)
            allocations["ptr"], allocations["bytes"] = ptr_m[block], bytes_m[block]
            file.write(allocations.view(np.uint8).data)
    return fingerprint


def relabelled(source: Beton, labels_n: np.ndarray, path: Path) -> str:
    """Writes `source` with the labels `labels_n`, (n,) integers, as a .beton at `path`, every other byte the same;
    returns its content fingerprint. Raises ValueError for labels of other rows, FailureError for a full disk.
    """
    if labels_n.shape != (len(source),):
        raise ValueError(f"labels of shape {labels_n.shape} for {len(source)} rows")
    start = _HEADER.itemsize + len(source.field_bytes)
    end = start + len(source) * _RECORD.itemsize
    need_space(path, len(source.content))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(source.content[:start].data)
        for block in _blocks(len(source)):
            first, last = (start + row * _RECORD.itemsize for row in (block.start, block.stop))
            records = bytearray(source.content[first:last])  # as bytes: of an array numpy need not copy those between
            np.frombuffer(records, dtype=_RECORD)["label"] = labels_n[block]
            file.write(records)
        file.write(source.content[end:].data)
    return open_beton(path).content_fingerprint()


def _write_pages(file: BinaryIO, pages: Iterable[bytes], page_bytes: int, records: Records, rows: int) -> str:
    """Writes the pages, each filled up with zeros, and returns the content fingerprint.

    One thread hashes a page while the next is gathered and written; another has the disk begin with what is there,
    which would all wait for the end. Two pages are held, however large the file.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=2) as threads:
        hashed, synced = threads.submit(_hash_identity, digest, records, rows), threads.submit(os.fsync, file.fileno())
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
