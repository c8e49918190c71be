"""Progress with rate and time left: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

Stages take a `Progress` as an argument and never print; `silent` is what Python callers get unless they pass another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Tick = Callable[[int], None]  # so many more are done; below 0, so many of the total will not be done after all
Progress = Callable[[str, int, str], AbstractContextManager[Tick]]

_SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def silent(what: str, total: int, unit: str) -> Iterator[Tick]:
    """Shows nothing."""
    yield lambda n: None


@contextmanager
def _plain_lines(what: str, total: int, unit: str) -> Iterator[Tick]:
    start_s = time.monotonic()
    done, last_line_s = 0, start_s

    def tick(n: int) -> None:
        nonlocal done, total, last_line_s
        done, total = done + max(n, 0), total + min(n, 0)
        now_s = time.monotonic()
        if now_s - last_line_s >= _SECONDS_BETWEEN_LINES and done:
            last_line_s = now_s
            rate = done / (now_s - start_s)
            left_s = max(total - done, 0) / rate
            print(f"{what}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s, {left_s:,.0f} s left", file=sys.stderr)

    yield tick


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Tick]:
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, leave=False) as bar:

        def tick(n: int) -> None:
            if n < 0:
                bar.total += n
                bar.refresh()
            else:
                bar.update(n)

        yield tick


def on_stderr(what: str, total: int, unit: str) -> AbstractContextManager[Tick]:
    """A bar where stderr is a terminal; elsewhere a line every 15 seconds, so that a log stays readable."""
    return (_bar if sys.stderr.isatty() else _plain_lines)(what, total, unit)


def line_above(line: str) -> None:
    """A line on stderr; where a bar stands there, above it."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)
