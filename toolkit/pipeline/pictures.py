"""Where pictures are drawn to: their names in the workspace's pictures/, and which places are refused."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.core.errors import UsageError
from toolkit.core.hashing import fingerprint
from toolkit.formats.workspace import Workspace

_LONGEST = 80  # characters of a name, before its fingerprint takes the place of the rest
_NOT_THERE = ("data", "teachers", "scores", "subsets", "runs")


def picture_path(workspace: Workspace, *words: str) -> Path:
    """A file or folder named after what it shows, so that other words are another picture."""
    told = "-".join(words)
    name = re.sub(r"[^A-Za-z0-9_.@+-]+", "_", told)
    if name != told or len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{fingerprint(told)[:8]}"
    return workspace.root / "pictures" / name


def is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def check_out(workspace: Workspace, out: Path, folder_too: bool) -> None:
    """Raises UsageError unless `out` is named *.png, or may be a folder, and is not among the workspace's artifacts."""
    may_be = "a folder, or a name that ends in .png" if folder_too else "a name that ends in .png"
    if is_png(out):
        wrong = "is a folder" if out.is_dir() else None
    else:
        wrong = "is a file" if out.is_file() else None if folder_too else "is no PNG file"
    if wrong:
        raise UsageError(f"--out {out}: {wrong}. Give it {may_be}")
    file = next((above for above in out.parents if above.is_file()), None)
    if file is not None:
        raise UsageError(f"--out {out}: {file} is a file. Give it {may_be}")
    for name in _NOT_THERE:
        artifacts = workspace.root / name
        if out.resolve().is_relative_to(artifacts.resolve()):
            raise UsageError(f"--out {out}: {artifacts} holds artifacts, not pictures. Choose another place")
