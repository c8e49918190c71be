"""One writer per artifact. The kernel drops the lock when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toolkit.core.errors import FailureError


@contextmanager
def only_writer(artifact: Path) -> Iterator[None]:
    """Holds `.<name>.lock` beside `artifact`. Raises FailureError naming the holder when another process has it."""
    path = artifact.with_name(f".{artifact.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise FailureError(
                f"{artifact}: is being written by {holder}. Wait for it to end, or stop it, then run this again"
            ) from None
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {started} ({command})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
