"""What made an artifact: versions, the command, and the machine."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from pathlib import Path

__version__ = "0.6.0"


def versions() -> dict[str, str]:
    """Of Python, kdtool and the libraries that shape its results."""
    from importlib import metadata  # as slow to import as all of click: --help needs only __version__

    libraries = {name: metadata.version(name) for name in ("torch", "torchvision", "ffcv", "h5py", "numpy")}
    return {"kdtool": __version__, "python": platform.python_version(), **libraries}


def command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def now() -> str:
    """UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
