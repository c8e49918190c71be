"""Progress with rate and time left: a bar on a terminal, a plain line now and then elsewhere. Always on stderr.

Stages take a `Progress` as an argument and never print; `silent` is what Python callers get unless they pass another.
A terminal that calls itself dumb, a pipe, a file and a notebook get plain lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Tick = Callable[[int], None]  # so many more are done; below 0, so many of the total will not be done after all
Progress = Callable[[str, int, str], AbstractContextManager[Tick]]

_SECONDS_BETWEEN_LINES = 15.0
_LATER_TIMES = 20  # as long between two lines, in the end
_SECONDS_BETWEEN_DRAWINGS = 0.1


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
        if done and now_s - last_line_s >= seconds_to_next_line(now_s - start_s):
            last_line_s = now_s
            rate = done / (now_s - start_s)
            left = duration_in_words(max(total - done, 0) / rate)
            print(f"{what}: {done:,} of {total:,} {unit}, {_rate(rate)} {unit}/s, {left} left", file=sys.stderr)

    yield tick


def seconds_to_next_line(elapsed_s: float) -> float:
    """Of plain lines: 15 s at first, a tenth of what has passed later, and five minutes at most, so that the log of a
    night has a page of them."""
    return _SECONDS_BETWEEN_LINES * max(1.0, min(_LATER_TIMES, elapsed_s / 150))


def duration_in_words(seconds: float) -> str:
    """8 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = round(seconds)
    for upper, lower, size, part in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {upper} {whole % size // part} {lower}"
    return f"{whole} s"


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.2g}"


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Tick]:
    from tqdm import tqdm

    how = {"dynamic_ncols": True, "leave": False, "mininterval": _SECONDS_BETWEEN_DRAWINGS}
    with tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, file=sys.stderr, **how) as bar:

        def tick(n: int) -> None:
            if n < 0:
                bar.total += n
                bar.refresh()
            else:
                bar.update(n)

        yield tick


def _can_draw_again() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def on_stderr(what: str, total: int, unit: str) -> AbstractContextManager[Tick]:
    """A bar where stderr is a terminal; elsewhere a line now and then: see `seconds_to_next_line`."""
    return (_bar if _can_draw_again() else _plain_lines)(what, total, unit)


def line_above(line: str) -> None:
    """A line on stderr; where a bar stands there, above it."""
    if _can_draw_again():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr, flush=True)
