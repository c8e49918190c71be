"""One writer per artifact. The kernel drops the lock when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import io
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from toolkit.core.errors import FailureError
from toolkit.core.files import refused
from toolkit.core.processes import ALONE, Processes


class Locked(FailureError):
    """Another process writes the artifact now."""


@contextmanager
def only_writer(artifact: Path, processes: Processes = ALONE) -> Iterator[None]:
    """Holds `.<name>.lock` beside `artifact`, of several processes in the first. Raises Locked naming the holder when
    another process has it."""
    with ExitStack() as stack:
        processes.first_only(lambda: stack.enter_context(_held(artifact)))
        yield


def is_being_written(artifact: Path) -> bool:
    """Whether a process of this machine writes it now. Nothing is made, and a lock nobody signed is not touched."""
    try:
        with _path(artifact).open("rb") as file:
            if file.read():
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # a lock that is not there, or cannot be read, is nobody's
        return isinstance(error, BlockingIOError)
    return False


@contextmanager
def _held(artifact: Path) -> Iterator[None]:
    with _opened(artifact) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().decode().strip() or "another process"
            raise Locked(
                f"{artifact}: is being written by {holder}. Wait for it to end, or stop it, then run this again"
            ) from None
        _sign(file, artifact)
        try:
            yield
        finally:
            file.truncate(0)


def _opened(artifact: Path) -> io.FileIO:
    path = _path(artifact)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return io.FileIO(path, "a+")
    except OSError as error:
        raise refused(artifact, error) from error


def _path(artifact: Path) -> Path:
    return artifact.with_name(f".{artifact.name}.lock")


def _sign(file: io.FileIO, artifact: Path) -> None:
    """Writes who holds the lock into it, for whoever finds it taken."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {started} ({command})".encode())
    except OSError as error:
        raise refused(artifact, error) from error
