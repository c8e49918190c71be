"""Whose a teacher's name is: a network's, or imported logits', which no network stands behind."""

from __future__ import annotations

from pathlib import Path

from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.bundle import Bundle
from toolkit.formats.cache import is_imported, open_cache
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.found_scores import IMPORTED as KEPT_NAME
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER, is_file_name, is_of_library


def refuse_imported(workspace: Workspace, bundle: Bundle | None, teacher: str | None, limit: int | None) -> None:
    """Raises FailureError where all there is of a teacher is imported logits: nothing can be run, or asked again."""
    if teacher is None or is_file_name(teacher) or is_of_library(teacher):
        return
    if (workspace.teacher(teacher) / "teacher.pt").is_file():
        return
    paths = [workspace.cache(teacher, limit)] if bundle is None else [bundle.targets_path(teacher)]
    for path in [*paths, *caches_of(workspace, teacher)]:
        if is_imported(path):
            with open_cache(path) as cache:
                raise FailureError(
                    f"{path}: the logits of {teacher} were imported, so there is no network to run or to ask again. "
                    f"For other views or rows run: {cache.record.import_command(path)}"
                )


def refuse_replacing(path: Path) -> None:
    """Raises FailureError where a network's cache would replace imported logits, which nothing makes again."""
    if is_imported(path):
        raise FailureError(
            f"{path}: imported logits, which no network can make again, so nothing of a network ever replaces them. "
            "Name the network's file otherwise, or delete this one yourself"
        )


def refuse_cached(workspace: Workspace, name: str) -> None:
    """Raises UsageError where a name to train under is that of imported logits, or of a cache made from a file."""
    caches = [] if (workspace.teacher(name) / "teacher.pt").is_file() else caches_of(workspace, name)
    if caches:
        of = "imported logits" if is_imported(caches[0]) else "logits of a network whose weights are in another file"
        raise UsageError(f"--name {name}: {caches[0]} holds {of}. Choose another --name")


def caches_of(workspace: Workspace, name: str) -> list[Path]:
    """Whatever the limit."""
    return sorted(workspace.teacher(name).glob("cache*.h5"))


def refuse_taken(workspace: Workspace, name: str, bundle: Bundle | None) -> None:
    """Raises UsageError for a name that can't be, or is a network's, or of a file that nobody can read."""
    checked_name(name)
    if name == KEPT_NAME:
        raise UsageError(f"--name {name}: that name is kept for imported scores. Choose another")
    folder = workspace.teacher(name)
    network = [folder / "teacher.pt", folder / "dynamics.h5", PRETRAINED_FOLDER / f"{name}.pt"]
    targets = [] if bundle is None else [bundle.targets_path(name)]
    files = [path for path in [*caches_of(workspace, name), *targets] if path.exists() and not is_imported(path)]
    taken = [*(path for path in network if path.exists()), *files]
    if taken:
        raise UsageError(
            f"--name {name}: {taken[0]} is of a network, or can't be read, and only imported logits are ever replaced. "
            "Choose another --name"
        )
