"""Artifacts appear whole or not at all: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, did_you_mean
from toolkit.core.sizes import in_words


def on_disk(path: Path) -> None:
    """Waits until what was written to a file, or which names a folder holds, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _shown(path: Path) -> Path:
    """The path as the user knows it: a folder still under its temporary name is called by its own."""
    return Path(*(re.sub(r"^\.(.+)\.\d+\.tmp$", r"\1", name) for name in path.parts))


def refused(path: Path, error: OSError) -> FailureError:
    """The operating system's no, as the user's error."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    instead = (
        "free some space or choose another --workspace"
        if full
        else "choose a --workspace or --out that you may write to"
    )
    return FailureError(
        f"{_shown(path)}: could not be written ({error.strerror or error}). Nothing half-written was left: "
        f"{instead}, then run the same command again"
    )


class DeferringFile(io.FileIO):
    """A file to write whose first refused write is raised by `check` or on closing, and not to its writer.

    HDF5 and torch's zip writer write from C: told in the middle that the disk is full, HDF5 crashes the process when it
    closes, and torch reports a wrong position instead of the reason.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")  # HDF5 reads back what it wrote
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            done = len(view) if self._error else 0
            while done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self._error is None else size or 0
        except OSError as error:
            self._error = error
            return size or 0

    def check(self) -> None:
        """Raises the OSError of the first refused write."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            self.check()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and is somebody else's
        return True
    return True


def _sweep(path: Path) -> None:
    """Takes away what killed processes left under temporary names of `path`, and brings back a folder moved aside."""
    for aside in path.parent.glob(f".{escape(path.name)}.before.*.tmp"):
        if not path.exists():
            aside.replace(path)
    for left in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what was written there becomes `path` when the block ends without an error.

    Raises FailureError, naming `path`, where the operating system refuses to write (a full disk, no permission).
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield temporary
        on_disk(temporary)
        temporary.replace(path)
        on_disk(path.parent)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        with suppress(OSError):  # it may never have been there, or its folder no folder
            temporary.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a folder: `path` must not exist, or is replaced as a whole at the end."""
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                on_disk(file)
        before = path.with_name(f".{path.name}.before.{os.getpid()}.tmp")
        if path.exists():
            path.replace(before)  # deleting takes long, and must not come between the old and the new
        try:
            temporary.replace(path)
        except OSError:
            if before.exists():
                before.replace(path)
            raise
        on_disk(path.parent)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Deletes a folder, if it is there: gone under its own name at once, so that no part of it is ever found alone."""
    _sweep(path)
    if path.is_dir():
        temporary = _temporary(path)
        path.replace(temporary)
        shutil.rmtree(temporary)


def need_space(path: Path, size_bytes: int) -> None:
    """Raises FailureError when the disk that will hold `path` has less than `size_bytes` free."""
    folder = path
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise FailureError(
            f"{_shown(path)}: needs {in_words(size_bytes)}, but {_shown(folder)} has {in_words(free_bytes)} free. "
            "Free some space or choose another --workspace"
        )


def write_json(path: Path, record: dict[str, Any], compact_lists: bool = False) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=None if compact_lists else 2) + "\n")


def read_json(path: Path, made_by: str) -> dict[str, Any]:
    """The record in `path`. Raises FailureError, naming the command `made_by`, when it is missing or not JSON."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise FailureError(f"{path}: not found. Run: {made_by}") from None
    except (OSError, ValueError) as error:
        raise FailureError(f"{path}: not readable as JSON ({error}). Run: {made_by}") from error
    if not isinstance(record, dict):
        raise FailureError(f"{path}: expected a JSON object, found {type(record).__name__}. Run: {made_by}")
    return record


def did_you_mean_path(path: Path) -> str:
    """For a path that is not there: the name beside it that is most like its first missing part, or nothing."""
    while not path.parent.exists():
        path = path.parent
    return did_you_mean(path.name, sorted(found.name for found in path.parent.glob("[!.]*")))
