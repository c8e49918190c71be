"""Threads that end when they should."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

_POLL_S = 0.002


def end_of(thread: threading.Thread, handed_over: queue.Queue) -> None:
    """Waits until a thread has ended that may itself be waiting to hand over what nobody will take."""
    while thread.is_alive():
        with suppress(queue.Empty):
            handed_over.get_nowait()
        thread.join(_POLL_S)
