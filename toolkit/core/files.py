"""Artifacts appear whole or not at all: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what was written there becomes `path` when the block ends without an error.

    Raises FailureError, naming `path`, where the operating system refuses to write (a full disk, no permission).
    """
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise FailureError(
            f"{path}: could not be written ({error.strerror or error}). Nothing was left behind; "
            "free some space or choose another --workspace, then run the same command again"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a folder: `path` must not exist, or is replaced as a whole at the end."""
    temporary = _temporary(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise FailureError(
            f"{path}: could not be written ({error.strerror or error}). Nothing was left behind; "
            "free some space or choose another --workspace, then run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def need_space(path: Path, size_bytes: int) -> None:
    """Raises FailureError when the disk that will hold `path` has less than `size_bytes` free."""
    folder = path
    while not folder.exists():
        folder = folder.parent
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < size_bytes:
        raise FailureError(
            f"{path}: needs {size_bytes / 1e6:,.1f} MB, but {folder} has {free_bytes / 1e6:,.1f} MB free. "
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
