"""How much memory a command may take: what --memory-limit says, for as long as the command runs.

The limit is of all processes of the command on one machine together: Python, torch and FFCV themselves, and all that is
held. Pages of mapped files are not counted: the system takes them back when it needs them. It is kept by deciding, not
by the system: what can be held or left on disk is held where it fits, and what can't be smaller is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.sizes import in_words

P = ParamSpec("P")
T = TypeVar("T")

STATUS = Path("/proc/self/status")
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([KMGT]?)(I?B)?", re.ASCII)

_limits: list[int] = []  # of the command that runs


def size_bytes(size: str | int) -> int:
    """A size in bytes: 8G and 8GiB are 8 · 1024³, 8GB is 8 · 1000³. Raises UsageError for what is no size above 0."""
    found = _SIZE.fullmatch(str(size).strip().upper())
    if found is None or (found[3] == "IB" and not found[2]):
        raise UsageError(f"--memory-limit {size}: not a size. Give it as 8G, 512MiB or 2000MB")
    base = 1000 if found[2] and found[3] == "B" else 1024
    value = int(float(found[1]) * base ** _UNITS[found[2]])
    if value < 1:
        raise UsageError(f"--memory-limit {size}: must be above 0. Give it as 8G, 512MiB or 2000MB")
    return value


def taken_bytes(status: Path = STATUS) -> int:
    """What this process takes now, without the pages of mapped files; 0 where the system does not tell."""
    try:
        lines = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB$", status.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 1024 * sum(map(int, lines))


def limit() -> int | None:
    """What the command that runs was given, in bytes, or None."""
    return _limits[-1] if _limits else None


def left_bytes(sharing: int = 1) -> int:
    """What this process, one of `sharing`, may still take by the limit: at least 0; without one there is no end."""
    return sys.maxsize if not _limits else max(0, _limits[-1] // sharing - taken_bytes())


def need(count_bytes: int, what: str, instead: str, sharing: int = 1) -> None:
    """Raises FailureError, saying what to do `instead`, where so much more is beyond the limit."""
    left = left_bytes(sharing)
    if count_bytes > left:
        said = in_words(_limits[-1])
        raise FailureError(
            f"--memory-limit: {what} takes {in_words(count_bytes)}, and of {said} there are {in_words(left)} left. "
            f"{instead}"
        )


@contextmanager
def kept_to(size: str | int | None) -> Iterator[None]:
    """Within the block the limit is `size`, or none. Raises UsageError for what is no size, or less than this process
    takes already."""
    if size is None:
        yield
        return
    most, taken = size_bytes(size), taken_bytes()
    if most <= taken:
        raise UsageError(
            f"--memory-limit {size}: this process takes {in_words(taken)} before it begins. Give it more: "
            "Python, torch and FFCV alone take half a GiB"
        )
    _limits.append(most)
    try:
        yield
    finally:
        _limits.pop()


def within_memory(function: Callable[P, T]) -> Callable[P, T]:
    """Of a command's function that takes `memory_limit`, a size, by keyword: it keeps to it."""

    @wraps(function)
    def run(*arguments: P.args, **asked: P.kwargs) -> T:
        with kept_to(cast("str | int | None", asked.get("memory_limit"))):
            return function(*arguments, **asked)

    return run
