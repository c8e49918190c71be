"""Progress with rate and time left: one line that is drawn again on a terminal, a plain line now and then elsewhere.
Always on stderr.

Stages take a `Progress` as an argument and never print; `silent` is what Python callers get unless they pass another.
The line on a terminal is never wider than the terminal is at that moment, and is drawn with a carriage return and
blanks alone: no colours, no escape sequences. A terminal that calls itself dumb, a pipe, a file and a notebook get
plain lines.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar
from unicodedata import east_asian_width

Tick = Callable[[int], None]  # so many more are done; below 0, so many of the total will not be done after all
Progress = Callable[[str, int, str], AbstractContextManager[Tick]]

_SECONDS_BETWEEN_LINES = 15.0
_LATER_TIMES = 20  # as long between two lines, in the end
_SECONDS_BETWEEN_DRAWINGS = 0.1
_MOST_COLUMNS, _USUAL_COLUMNS = 100, 80
_BAR = 24  # columns at most


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


def line_within(columns: int, what: str, done: int, total: int, unit: str, elapsed_s: float, bar: str = "█░") -> str:
    """The fullest line of progress that fits into so many columns: the bar goes first, then the rate, then the time
    left, then the count, and the name last. `bar` are the signs of what is done and what is left."""
    share = min(1.0, done / total) if total > 0 else 0.0
    percent = f"{what} {share:4.0%}"
    count = f"{percent} {done:,}/{total:,} {unit}"
    left = rate = count
    if done and elapsed_s > 0:
        a_second = done / elapsed_s
        left = f"{count}, {duration_in_words(max(total - done, 0) / a_second)} left"
        rate = f"{count}, {_rate(a_second)} {unit}/s{left.removeprefix(count)}"
    room = min(_BAR, columns - _width(rate) - 1)
    full = round(share * room)
    drawn = [f"{percent} {bar[0] * full}{bar[1] * (room - full)}{rate.removeprefix(percent)}"] if room >= 6 else []
    return next((line for line in (*drawn, rate, left, count, percent) if _width(line) <= columns), _cut(what, columns))


def _width(line: str) -> int:
    """In columns: Chinese and Japanese signs take two."""
    return sum(2 if east_asian_width(sign) in "WF" else 1 for sign in line)


def _cut(line: str, columns: int) -> str:
    while line and _width(line) > columns:
        line = line[:-1]
    return line


class _Line:
    """The line on a terminal. Those begun while another is shown stand in its place until they end."""

    shown: ClassVar[list[_Line]] = []  # the innermost last

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.drawn = 0, 0
        self.start_s = self.last_s = time.monotonic()

    def tick(self, n: int) -> None:
        self.done, self.total = self.done + max(n, 0), self.total + min(n, 0)
        now_s = time.monotonic()
        if now_s - self.last_s >= _SECONDS_BETWEEN_DRAWINGS and _Line.shown[-1] is self:
            self.last_s = now_s
            self.draw()

    def draw(self) -> None:
        columns = _columns()
        bar = "█░" if "utf" in (sys.stderr.encoding or "").lower() else "#-"
        elapsed_s = time.monotonic() - self.start_s
        line = line_within(columns, self.what, self.done, self.total, self.unit, elapsed_s, bar)
        blanks = " " * max(0, min(self.drawn, columns) - _width(line))
        sys.stderr.write(f"\r{line}{blanks}")
        sys.stderr.flush()
        self.drawn = _width(line)

    def erase(self) -> None:
        sys.stderr.write(f"\r{' ' * min(self.drawn, _columns())}\r")
        sys.stderr.flush()
        self.drawn = 0


def _columns() -> int:
    """What a line may take now: one less than the terminal has, as many wrap where its last column is written."""
    try:
        found = os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return min(_MOST_COLUMNS, found or _USUAL_COLUMNS) - 1  # a terminal that nobody told its size says 0


@contextmanager
def _line(what: str, total: int, unit: str) -> Iterator[Tick]:
    if _Line.shown:
        _Line.shown[-1].erase()
    line = _Line(what, total, unit)
    _Line.shown.append(line)
    try:
        line.draw()
        yield line.tick
    finally:
        line.erase()
        _Line.shown.remove(line)
        if _Line.shown:
            _Line.shown[-1].draw()


def _can_draw_again() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def on_stderr(what: str, total: int, unit: str) -> AbstractContextManager[Tick]:
    """One line that is drawn again where stderr is a terminal; elsewhere a line now and then: see
    `seconds_to_next_line`."""
    return (_line if _can_draw_again() else _plain_lines)(what, total, unit)


def line_above(line: str) -> None:
    """A line on stderr; where one of progress stands there, above it."""
    if _Line.shown:
        _Line.shown[-1].erase()
    print(line, file=sys.stderr, flush=True)
    if _Line.shown:
        _Line.shown[-1].draw()
