"""Making what a loop will ask for while it is busy: in a thread of its own, a few items ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

from toolkit.core.threads import end_of

T = TypeVar("T")
_END = object()


class _Raised(NamedTuple):
    error: BaseException


@contextmanager
def made_ahead(items: Generator[T, None, None], depth: int) -> Iterator[Iterator[T]]:
    """The items, made in a thread up to `depth` before they are asked for.

    An error of theirs is raised where they are taken. With the block the generator is closed and its thread ends.
    """
    made: queue.Queue[Any] = queue.Queue(depth)
    unwanted = threading.Event()

    def make() -> None:
        last: Any = _END
        try:
            for item in items:
                made.put(item)
                if unwanted.is_set():
                    break
        except BaseException as error:  # raised again where it is taken: the reader would otherwise wait for ever
            last = _Raised(error)
        finally:
            items.close()
        made.put(last)

    def taken() -> Iterator[T]:
        while (item := made.get()) is not _END:
            if isinstance(item, _Raised):
                raise item.error
            yield item

    thread = threading.Thread(target=make, name="kdtool-prefetch", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        unwanted.set()
        end_of(thread, made)
