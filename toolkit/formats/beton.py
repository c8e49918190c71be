"""FFCV's .beton files read and cut without importing FFCV, which costs seconds.

Layout, version 2: header, field descriptions, one metadata record a row, pages of pixels, and a table of allocations at
the end. kdtool's files hold three fields: `image` (RGB, raw uint8 or JPEG), `label`, and `row`, the row's number in the
data set it was packed from, which a subset keeps.

Shapes: n rows of the file, m rows of a cut, h and w height and width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import need_space, whole_file

FIELDS = ("image", "label", "row")
PAGE_BYTES = 1 << 21  # FFCV's smallest: a small data set should make a small file

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
        return np.memmap(self.path, dtype=np.uint8, mode="r")

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
        size = height * width * 3
        frames = np.empty((len(images), size), dtype=np.uint8)
        content = self.content
        for position, ptr in enumerate(images["ptr"].tolist()):
            frames[position] = content[ptr : ptr + size]
        return frames.reshape(-1, height, width, 3)

    def content_fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over sizes, labels, row numbers and stored pixels, in row order.

        FFCV's parallel writer lays pages out in no fixed order, so the file's own bytes would not do.
        """
        digest = hashlib.sha256()
        identity = np.stack(
            [*(self.records_n["image"][name] for name in ("mode", "height", "width")), self.labels_n, self.rows_n]
        )
        digest.update(identity.astype("<i8").tobytes())
        content = self.content
        for ptr, size in zip(self.records_n["image"]["ptr"].tolist(), self.bytes_n.tolist(), strict=True):
            digest.update(content[ptr : ptr + size].data)
        return digest.hexdigest()[:16]


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
    if not np.array_equal(np.sort(allocations["row"]), np.arange(rows, dtype=np.uint64)):
        raise broken("truncated or overwritten: its table does not name each row once")
    bytes_n = np.empty(rows, dtype=np.int64)
    bytes_n[allocations["row"].astype(np.int64)] = allocations["bytes"]
    images = records_n["image"]
    room = table - bytes_n.clip(0, table)  # where a frame may begin; kept apart from ptr, whose sum could overflow
    if np.any(bytes_n < 0) or np.any(bytes_n > table) or np.any(images["ptr"] > room.astype(np.uint64)):
        raise broken("truncated or overwritten: a frame lies beyond the last page")
    raw_bytes_n = images["height"].astype(np.int64) * images["width"] * 3
    if np.any((images["mode"] == _RAW) & (bytes_n != raw_bytes_n)):
        raise broken("truncated or overwritten: a frame's bytes are not those of its size")
    if not np.isin(images["mode"], (_JPEG, _RAW)).all():
        raise broken("truncated or overwritten: a frame is neither raw nor JPEG")
    return Beton(path, int(header["page_bytes"]), fields.tobytes(), records_n, bytes_n)


def _place(bytes_m: np.ndarray, start: int, page_bytes: int) -> tuple[np.ndarray, int]:
    """Where each image goes, none across a page's end, as FFCV requires: (pointers (m,) int64, number of pages)."""
    pointers = np.empty(len(bytes_m), dtype=np.int64)
    page, used = 0, 0
    for position, size in enumerate(bytes_m.tolist()):
        if used + size > page_bytes:
            page, used = page + 1, 0
        pointers[position] = start + page * page_bytes + used
        used += size
    return pointers, page + 1


def _header(rows: int, page_bytes: int, table: int) -> bytes:
    return np.array([(_VERSION, len(FIELDS), page_bytes, rows, table)], dtype=_HEADER).tobytes()


def cut(source: Beton, rows_m: np.ndarray, path: Path) -> None:
    """Writes the rows `rows_m` of `source`, in that order, byte for byte, as a .beton of its own at `path`.

    The same rows give the same bytes, whatever wrote the source.
    """
    records_m = np.zeros(len(rows_m), dtype=_RECORD)  # so that the bytes between fields are zero too
    records_m[:] = source.records_n[rows_m]
    bytes_m = source.bytes_n[rows_m]
    tables = _HEADER.itemsize + len(source.field_bytes) + records_m.nbytes
    start = -(-tables // source.page_bytes) * source.page_bytes
    pointers, pages = _place(bytes_m, start, source.page_bytes)
    from_m = records_m["image"]["ptr"].astype(np.int64)
    records_m["image"]["ptr"] = pointers
    table = start + pages * source.page_bytes
    allocations = np.empty(len(rows_m), dtype=_ALLOCATION)
    allocations["row"], allocations["ptr"], allocations["bytes"] = np.arange(len(rows_m)), pointers, bytes_m

    need_space(path, table + allocations.nbytes)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(_header(len(rows_m), source.page_bytes, table))
        file.write(source.field_bytes)
        file.write(records_m.tobytes())
        page_of_m = (pointers - start) // source.page_bytes
        ends = np.searchsorted(page_of_m, np.arange(pages), side="right").tolist()
        first = 0
        for number, last in enumerate(ends):
            page_at = start + number * source.page_bytes
            file.seek(page_at)
            file.write(_page(source, from_m[first:last], bytes_m[first:last], pointers[first:last] - page_at))
            first = last
        file.write(allocations.tobytes())


def _page(source: Beton, from_m: np.ndarray, bytes_m: np.ndarray, to_m: np.ndarray) -> memoryview:
    page = np.zeros(source.page_bytes, dtype=np.uint8)
    content = source.content
    for origin, size, target in zip(from_m.tolist(), bytes_m.tolist(), to_m.tolist(), strict=True):
        page[target : target + size] = content[origin : origin + size]
    return page.data
