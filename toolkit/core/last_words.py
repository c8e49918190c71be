"""How one of several processes says why it ends: what all have to say is said once, and by the first one; what another
has to say alone, with its number."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from toolkit.core.interrupts import Stopped
from toolkit.core.processes import Followed, Lost, meeting_store, told

_PATIENCE_S = 5.0  # the first one is waited for so long
_SAID, _LOST = "kdtool/said by the first", "kdtool/lost"


def say_once(line: str, say: Callable[[str], None], error: BaseException | None = None) -> None:
    """Says `line`, the reason why this process ends, unless another says it."""
    rank, count, _ = told()
    numbered = line.replace("kdtool: ", f"kdtool: process {rank} of {count}: ", 1)
    if count == 1:
        say(line)
    elif meeting_store() is None:
        _before_meeting(line if rank == 0 else numbered, rank, say)
    else:
        _hear_sigterm(signal.SIG_IGN)  # torchrun sends it when the first of them has ended
        try:
            _after_meeting(line, numbered, rank, say, error)
        except RuntimeError:  # torchrun itself is gone
            say(line)


def _before_meeting(line: str, rank: int, say: Callable[[str], None]) -> None:
    """Most of what goes wrong here does in all of them: as the first one ends, torchrun ends those that wait."""
    if rank:
        _hear_sigterm(signal.SIG_DFL)
        time.sleep(_PATIENCE_S)
    say(line)


def _after_meeting(
    line: str, numbered: str, rank: int, say: Callable[[str], None], error: BaseException | None
) -> None:
    store = meeting_store()
    if isinstance(error, Lost):
        if not _said(store) and store.compare_set(_LOST, "", str(rank)).decode() == str(rank):
            say(line)
    elif rank == 0:
        say(line)
        store.set(_SAID, line)
    elif not isinstance(error, Followed):
        said = _said_within(_PATIENCE_S, store)
        if said != line and not (said and isinstance(error, Stopped)):  # torchrun stopped it, as the first had ended
            say(numbered)


def _hear_sigterm(how: signal.Handlers) -> None:
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, how)


def _said(store: Any) -> str:
    return store.get(_SAID).decode() if store.check([_SAID]) else ""


def _said_within(seconds: float, store: Any) -> str:
    """What the first process said of its end; nothing if it has not after so long."""
    deadline_s = time.monotonic() + seconds
    while not (said := _said(store)) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return said
