"""Being told to stop: SIGINT (Ctrl-C) and SIGTERM (schedulers, `kill`) end a command in order, with one line.

Training saves first: it looks, after each step, whether a stop was asked (`stop_asked`). Everything else is stopped
where it stands, by an exception in the main thread, so that temporary files go (`stopped_by_sigterm`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from toolkit.core.errors import KdtoolError

AGAIN = "Run it again: cache-teacher and training go on from their last finished part"
_BY_TORCHRUN = "by torchrun: it was told to, or another process ended (its summary says which)"


class Stopped(KdtoolError):
    """The user, or a scheduler, stopped the command: the exit code is the shell's, 128 and the signal's number."""

    def __init__(self, line: str, number: int) -> None:
        super().__init__(line)
        self.number, self.exit_code = number, 128 + number


class Stop:
    """Whether a stop was asked: `number` is the first signal's, 0 before."""

    number = 0

    def ask(self, number: int) -> None:
        """Notes the first signal; the second ends at once."""
        if self.number:
            signal.signal(number, signal.SIG_DFL)  # and the third without asking Python
            raise Stopped(f"stopped at once. {AGAIN}", number)
        self.number = number


@contextmanager
def stop_asked() -> Iterator[Stop]:
    """Within the block SIGINT and SIGTERM are noted in what it yields, and a second one raises Stopped.

    Only the main thread can listen: in another nothing is changed, and no stop is ever asked.
    """
    stop = Stop()
    with _heard([signal.SIGINT, signal.SIGTERM], stop.ask):
        yield stop


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises Stopped, as SIGINT raises KeyboardInterrupt."""

    def stop(number: int) -> None:
        by = f" {_BY_TORCHRUN}" if os.environ.get("WORLD_SIZE", "1") != "1" else ""
        raise Stopped(f"stopped{by}. {AGAIN}", number)

    with _heard([signal.SIGTERM], stop):
        yield


@contextmanager
def stop_said(line: Callable[[], str]) -> Iterator[None]:
    """A stop that ends the block where it stands is told by this line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(line(), signal.SIGINT) from None
    except Stopped as stopped:
        raise Stopped(line(), stopped.number) from None


@contextmanager
def _heard(numbers: list[signal.Signals], act: Callable[[int], None]) -> Iterator[None]:
    """`act` is called with the number of a signal that this process gets. Signals that are ignored stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            act(number)
        else:  # forked from it: what its parent does on a signal is none of its business
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in numbers}
    ours = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
