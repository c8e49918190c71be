"""Work measured in a process of its own, so that its peak memory is its own: seconds, and the largest resident set.

A process inherits the high-water mark of the one that starts it (Linux, at exec), so that a starter of a few megabytes
stands in between.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
# Starts its arguments, and prints their process's status and peak as its last line.
_STARTER = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


@dataclass(frozen=True)
class Measured:
    """`seconds` of the work, and of all the child's threads `cpu_s`; `held_bytes` is the child's peak before the work,
    `peak_bytes` in the end, both resident. `found` is what the work returned. Where it failed, `error` says how."""

    seconds: float = float("nan")
    cpu_s: float = float("nan")
    held_bytes: int = 0
    peak_bytes: int = 0
    found: Any = None
    error: str | None = None

    @property
    def more_bytes(self) -> int:
        """What the work took beyond what the child held before."""
        return self.peak_bytes - self.held_bytes

    def to_record(self) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in asdict(self).items()}  # JSON has no NaN


_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


def work(run: Callable[[], Any], limit_s: float | None = None) -> NoReturn:
    """In the child: runs, prints what `measured` reads, and ends. Past `limit_s` the kernel ends the process."""
    held_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
    signal.setitimer(signal.ITIMER_REAL, limit_s or 0)  # its default action ends even a thread that is in C
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    found = run()
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "held_bytes": held_bytes, "found": found}), flush=True)
    os._exit(0)  # the usual end, with torch's, touches some 100 MB that it had not before


def started(command: list[str], **environment: str) -> tuple[list[str], int, int]:
    """(its lines, exit status, peak resident bytes) of a command, the peak by the kernel's count for that process."""
    starter = [sys.executable, "-S", "-c", _STARTER, *command]
    merged = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "env": {**os.environ, **environment},
    }
    done = subprocess.run(starter, cwd=ROOT, check=True, **merged)  # type: ignore[call-overload]
    *lines, last = done.stdout.splitlines()
    code, peak = map(int, last.split())
    return lines, code, peak * _MAXRSS_BYTES


def measured(module: str, *words: Any) -> Measured:
    """Runs `python -m module words…`, which ends in `work`."""
    lines, code, peak_bytes = started([sys.executable, "-m", module, *map(str, words)])
    if code == -signal.SIGALRM:
        return Measured(peak_bytes=peak_bytes, error="stopped")
    if code:
        return Measured(peak_bytes=peak_bytes, error=lines[-1][:200] if lines else f"ended with {code}")
    return Measured(**json.loads(lines[-1]), peak_bytes=peak_bytes)
