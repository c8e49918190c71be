"""Making what a loop will ask for while it is busy: in a thread of its own, a few items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from toolkit.core.threads import end_of

T = TypeVar("T")


@contextmanager
def made_ahead(items: Generator[T, None, None], depth: int) -> Iterator[Iterator[T]]:
    """The items, made in a thread up to `depth` before they are asked for.

    An error of theirs is raised where they are taken. With the block the generator is closed and its thread ends.
    """
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    wanted = threading.Event()
    wanted.set()

    def make() -> None:
        try:
            for item in items:
                made.put((item, None))
                if not wanted.is_set():
                    break
            made.put((None, StopIteration()))
        except BaseException as error:  # raised again by the reader, which would otherwise wait for ever
            made.put((None, error))
        finally:
            items.close()

    def taken() -> Iterator[T]:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item

    thread = threading.Thread(target=make, name="kdtool-prefetch", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        wanted.clear()
        end_of(thread, made)
