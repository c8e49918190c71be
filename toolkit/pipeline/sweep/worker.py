"""One of a sweep's processes: it trains run after run, and tells the one that started it how each went."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.core.children import end_with_parent
from toolkit.core.errors import KdtoolError
from toolkit.core.interrupts import Stopped
from toolkit.core.locks import Locked
from toolkit.core.progress import Tick
from toolkit.formats.workspace import Workspace

_BETWEEN_TELLINGS_S = 0.25
_WAIT_S = 1.0


@dataclass(frozen=True)
class How:
    """What all runs of a sweep share, and none depends on for its weights but by `threads`."""

    workspace: Workspace
    device: str
    precision: str
    compile: bool
    threads: int | None
    source: str
    data_dir: Path | None
    memory_limit: int | None = None  # of each


class Images(NamedTuple):
    """So many more were shown to the run."""

    shown: int


class Done(NamedTuple):
    name: str
    result: dict[str, Any]
    seconds: float


class Failed(NamedTuple):
    """`trace` is of an error that is kdtool's own, or a library's."""

    error: str
    trace: str | None


class Later(NamedTuple):
    """The run is to be taken up again: another process trains it, or this one alone was told to stop."""


class Ready(NamedTuple):
    """The process has started."""


def serve(connection: Connection, how: How) -> None:
    """Trains what arrives, a Run each time, until None does; sends Ready, and of each Images, then Done, Failed or
    Later."""
    end_with_parent()
    os.dup2(2, 1)  # stdout is for the sweep's result, whatever a library's C code or its processes print
    connection.send(Ready())
    while (run := connection.recv()) is not None:
        connection.send(_trained(run, how, connection))


def _trained(run: Any, how: How, connection: Connection) -> Done | Failed | Later:
    from toolkit.pipeline.student import distill
    from toolkit.pipeline.sweep.resolve import finished

    start_s = time.perf_counter()
    try:
        name, result = finished(how.workspace, run)
        if result is None:
            shown = _Telling(connection)
            result = distill(name=name, progress=shown.progress, **vars(how), **run.asked)
        return Done(name, result, time.perf_counter() - start_s)
    except Locked:
        time.sleep(_WAIT_S)
        return Later()
    except Stopped:
        return Later()
    except KdtoolError as error:
        return Failed(str(error), None)
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        return Failed(f"{type(error).__name__}: {words}", traceback.format_exc())


class _Telling:
    """A Progress that tells now and then how many images were shown."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._untold, self._told_s = connection, 0, time.monotonic()

    @contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Tick]:
        yield self._tick if what.startswith("epoch ") else lambda n: None

    def _tick(self, n: int) -> None:
        self._untold += n
        now_s = time.monotonic()
        if now_s - self._told_s >= _BETWEEN_TELLINGS_S:
            self._connection.send(Images(self._untold))
            self._untold, self._told_s = 0, now_s
