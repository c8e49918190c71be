"""Short trials on this machine, of which a dry run's minutes are made."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from toolkit.core.progress import Progress, Tick

SECONDS = 2.0  # that a trial begun takes at most, between two ticks
_COPIED_BYTES = 1 << 25


class _Enough(Exception):
    """A trial has shown enough."""


def seconds_of(work: Callable[[Progress], object]) -> float:
    """How long `work`, which tells its progress, takes: the whole of it where that is two seconds, and otherwise as its
    first two seconds promise. It must write nothing."""
    start_s = time.perf_counter()
    share = 1.0

    @contextmanager
    def watched(what: str, total: int, unit: str) -> Iterator[Tick]:
        done = 0

        def tick(n: int) -> None:
            nonlocal done, share
            done += n
            if done and time.perf_counter() - start_s > SECONDS:
                share = min(1.0, done / max(total, 1))
                raise _Enough

        yield tick

    with suppress(_Enough):
        work(watched)
    return (time.perf_counter() - start_s) / share


def copied_bytes_per_s(path: Path) -> float:
    """How fast a file's first 32 MiB are copied to the disk of the temporary folder, and are safe there."""
    with path.open("rb") as source, TemporaryDirectory(prefix="kdtool-dry-run-") as folder:
        start_s = time.perf_counter()
        content = source.read(_COPIED_BYTES)
        with (Path(folder) / "copy").open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        return len(content) / max(time.perf_counter() - start_s, 1e-9)
