"""Appending to an HDF5 file without rewriting anything in it; killed at any moment, the file is the old or the new one.

Everything new is written past the old end: new datasets, and a new root group with links to them and to the old ones.
The superblock, HDF5's first 48 bytes, says where the root group and the end are. Writing it anew is the one change
within the old file, made when all else is on disk. Nobody sees a state between, and a reader that has the old file open
keeps it as it was.

HDF5 also counts the links to an old dataset in its header, and links the new root into the old one. Such writes are
kept in memory and dropped: once nothing leads to the old root, what the disk says is right. What is replaced, and some
kB of tables for each append, stay behind as dead bytes.

    superblock (version 2): signature and sizes (12 bytes), base, extension, end, root (uint64 each), checksum (uint32)
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from toolkit.core.errors import FailureError
from toolkit.core.files import DeferringFile, refused

LIBVER = ("v108", "v110")
_NEW_ROOT = ".new root"
_START = b"\x89HDF\r\n\x1a\n\x02\x08\x08"
_SUPERBLOCK_BYTES = 48
_PAGE_BYTES = 4096

# What h5py raises somewhere within a damaged file; a refused write is never among it (see DeferringFile).
DAMAGE = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, MemoryError)


def lookup3(data: bytes) -> int:
    """The checksum of HDF5's tables: hashlittle of Bob Jenkins, "lookup3" (2006), started at 0."""
    mask = 0xFFFFFFFF

    def turned(word: int, bits: int) -> int:
        return (word << bits | word >> (32 - bits)) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    words = struct.unpack(f"<{-(-len(data) // 12) * 3}I", data.ljust(-(-len(data) // 12) * 12, b"\0"))
    for at in range(0, len(words), 3):
        a, b, c = ((old + new) & mask for old, new in zip((a, b, c), words[at : at + 3], strict=True))
        if at + 3 == len(words):
            break
        for bits in (4, 6, 8, 16, 19, 4):
            a, c = ((a - c) & mask) ^ turned(c, bits), (c + b) & mask
            a, b, c = b, c, a
    for bits in (14, 11, 25, 16, 4, 14, 24) if words else ():
        c = ((c ^ b) - turned(b, bits)) & mask
        a, b, c = b, c, a
    return b


class _GrowingFile(DeferringFile):
    """A file for h5py whose bytes before `end` stay as they are on disk: what is written there is kept in memory."""

    def __init__(self, path: Path) -> None:
        io.FileIO.__init__(self, path, "r+")
        self._error = None
        self._pages: dict[int, bytearray] = {}
        self.end = 0

    def trim(self) -> None:
        """Takes away what lies past the end in the superblock: what a killed or failed append left.

        Raises ValueError when there is no superblock of the kind `new_cache` makes.
        """
        head = os.pread(self.fileno(), _SUPERBLOCK_BYTES, 0)
        if len(head) < _SUPERBLOCK_BYTES or not head.startswith(_START):
            raise ValueError("it is not HDF5 of this kind")
        if struct.unpack("<I", head[44:])[0] != lookup3(head[:44]):
            raise ValueError("its superblock fails its checksum")
        self.end = struct.unpack("<Q", head[28:36])[0]
        if os.fstat(self.fileno()).st_size < self.end:
            raise ValueError("it is cut short")
        os.ftruncate(self.fileno(), self.end)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """The pages that bytes `start` to `stop` lie in: number, the part of the page, the part of those bytes."""
        for page in range(start // _PAGE_BYTES, -(-stop // _PAGE_BYTES)):
            first, last = max(start, page * _PAGE_BYTES), min(stop, (page + 1) * _PAGE_BYTES)
            yield page, slice(first - page * _PAGE_BYTES, last - page * _PAGE_BYTES), slice(first - start, last - start)

    def readinto(self, buffer: Any) -> int:
        view, at = memoryview(buffer).cast("B"), self.tell()
        count = super().readinto(view) or 0
        for page, in_page, in_view in self._pieces(at, max(at, min(at + count, self.end))):
            if page in self._pages:
                view[in_view] = self._pages[page][in_page]
        return count

    def write(self, data: Any) -> int:
        view, at = memoryview(data).cast("B"), self.tell()
        old_bytes = max(0, min(len(view), self.end - at))
        for page, in_page, in_view in self._pieces(at, at + old_bytes):
            if page not in self._pages:
                now = os.pread(self.fileno(), _PAGE_BYTES, page * _PAGE_BYTES)
                self._pages[page] = bytearray(now.ljust(_PAGE_BYTES, b"\0"))
            self._pages[page][in_page] = view[in_view]
        self.seek(at + old_bytes)
        if old_bytes < len(view):
            super().write(view[old_bytes:])
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        return super().truncate(max(self.end, self.tell() if size is None else size))

    def superblock(self, root: int) -> bytes:
        """HDF5's own new superblock, with the root group at `root`."""
        head = bytearray(_SUPERBLOCK_BYTES)
        self.seek(0)
        self.readinto(head)
        head[36:44] = struct.pack("<Q", root)
        return bytes(head[:44]) + struct.pack("<I", lookup3(bytes(head[:44])))

    def prove(self, superblock: bytes, expected: dict[str, Any]) -> None:
        """Opens the file as it will be on disk under `superblock`. Raises ValueError unless it is as `expected`."""
        self._pages.clear()
        self.seek(0)
        self.write(superblock)
        with h5py.File(self, "r") as file:
            if _described(file) != expected:
                raise ValueError(f"HDF5 {h5py.version.hdf5_version} reads it otherwise than it was written")


def _described(group: h5py.Group) -> dict[str, Any]:
    """Every object's attributes, and every dataset's shape, type and place in the file."""
    described: dict[str, Any] = {}

    def describe(name: str, item: Any) -> None:
        place = (item.shape, str(item.dtype), item.id.get_offset()) if isinstance(item, h5py.Dataset) else None
        described[name] = place, {key: str(value) for key, value in item.attrs.items()}

    describe("", group)
    group.visititems(describe)
    return described


def _new_root(file: h5py.File) -> h5py.Group:
    """A group at the end of the file with links to every dataset; attributes of the old groups are not kept."""
    datasets: dict[str, h5py.Dataset] = {}
    file.visititems(lambda name, item: datasets.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    root = file.create_group(_NEW_ROOT)
    for name, dataset in datasets.items():
        root[name] = dataset
    return root


@contextmanager
def appending(path: Path, made_by: str) -> Iterator[tuple[h5py.Group, DeferringFile]]:
    """Yields the root group that the file has once the block ends without an error, and the file, to `check` writes by.

    Datasets may be created in it and unlinked from it; writing into old ones changes nothing. In the block, read no
    attribute before the last one is written: HDF5 would put the text of new ones into the old file, where it is lost.
    One process at a time: hold `only_writer`. Raises FailureError where the operating system refuses to write, or the
    file is damaged; it is then as it was.
    """
    try:
        with _GrowingFile(path) as disk:
            try:
                with _named(path, made_by, (ValueError,)):
                    disk.trim()
                with _named(path, made_by):
                    file = h5py.File(disk, "r+", libver=LIBVER)
                with file:
                    with _named(path, made_by):
                        root = _new_root(file)
                    yield root, disk
                    disk.check()
                    with _named(path, made_by):
                        address, expected = h5py.h5o.get_info(root.id).addr, _described(root)
                disk.check()
                superblock = disk.superblock(address)
                with _named(path, made_by):
                    disk.prove(superblock, expected)
                os.fsync(disk.fileno())  # all that is new is there before anything leads to it
                os.pwrite(disk.fileno(), superblock, 0)
                os.fsync(disk.fileno())
            except BaseException:
                # by the superblock on disk: should it be the new one already, nothing is taken away
                with suppress(OSError, ValueError):  # then the next append does it
                    disk.trim()
                raise
    except OSError as error:
        raise refused(path, error) from error


@contextmanager
def _named(path: Path, made_by: str, kinds: tuple[type[Exception], ...] = DAMAGE) -> Iterator[None]:
    """What h5py raises on a damaged file, as the user's error."""
    try:
        yield
    except kinds as error:
        reason = (str(error.args[0] if error.args else "").splitlines() or [type(error).__name__])[0][:160]
        raise FailureError(f"{path}: can't be appended to ({reason}). Run: {made_by}") from error
