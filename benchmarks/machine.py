"""What a result was measured on, and where results go."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from toolkit.core.device import cpu_bfloat16
from toolkit.core.versions import now, versions

KDTOOL = str(Path(sys.executable).with_name("kdtool"))  # of this environment
RESULTS = Path(__file__).parent / "results"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(asked, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def facts() -> dict[str, Any]:
    """Hardware, versions, commit and time: every result file carries them."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "bfloat16": cpu_bfloat16() or "none",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": versions(),
        "commit": _commit(),
        "when": now(),
    }


def in_words(machine: dict[str, Any]) -> str:
    cores, threads = (f"{machine[what]} {what[:-1] if machine[what] == 1 else what}" for what in ("cores", "threads"))
    return f"{cores} of {machine['cpu']} (bfloat16: {machine['bfloat16']}), {threads}"


def save(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes <name>-<date>.json, replacing one of the same day."""
    path = folder / f"{name}-{now()[:10]}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the disk that workspaces lie on, gone afterwards: /tmp is often memory, which is no disk."""
    above = RESULTS.parent.parent / "kdtool-work"
    above.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=above) as folder:
        yield Path(folder)


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
