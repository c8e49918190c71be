"""What a dry run tells, the same of every command, and the workspace that it may look at."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from toolkit.core import defaults
from toolkit.core.asked import as_path
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.imported import is_reference
from toolkit.core.progress import Progress, silent
from toolkit.data.sources import lies_in
from toolkit.formats.bundle import open_bundle
from toolkit.formats.dataset import data_key, is_image_folder, pack_command, without_noise
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import check_dataset, ensure_packed

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Foreseen:
    """What a command would do. `path` is what it would make, or look at where it `makes` nothing; `there` whether that
    is there already and nothing is left to do; the passes are images shown to either network in training or not;
    `bytes` are those on disk in the end. `basis` says what `minutes` rest on, and `more` is what only one command
    tells."""

    path: Path | str
    there: bool
    bytes: int
    minutes: float
    basis: str
    teacher_passes: int = 0
    student_passes: int = 0
    makes: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "dry_run": True,
            "path": str(self.path),
            "there": self.there,
            "teacher_passes": self.teacher_passes,
            "student_passes": self.student_passes,
            "bytes": self.bytes,
            "minutes": self.minutes,
            "basis": self.basis,
            "makes": self.makes,
            **self.more,
        }


def already_there(path: Path | str, **more: Any) -> dict[str, Any]:
    """What is told where nothing is left to do."""
    return Foreseen(path, True, 0, 0.0, "it is there, made with the same settings", more=more).told()


def _always(asked: dict[str, Any]) -> bool:
    return True


def may_be_dry(function: F, needs_data: Callable[[dict[str, Any]], bool] = _always) -> F:
    """For functions of the pipeline with a `dry_run`: such a run finds its data packed, in a temporary workspace where
    the one given lacks them; what it tells names the one given. `needs_data` says of what is asked whether the packed
    data are looked at."""
    signature = inspect.signature(function)

    @wraps(function)
    def run(*args: Any, **given: Any) -> Any:
        bound = signature.bind(*args, **given)
        bound.apply_defaults()
        asked = {**bound.arguments, **bound.arguments.get("asked", {})}
        if not asked["dry_run"] or not needs_data(asked):
            return function(*args, **given)
        names = ("dataset", "limit", "subset", "progress")
        of = {name: asked[name] for name in names if asked.get(name) is not None}

        def look(there: Workspace) -> Any:
            bound.arguments["workspace"] = there
            return function(*bound.args, **bound.kwargs)

        return on_packed(Workspace.at(asked["workspace"]), look, data_dir=as_path(asked.get("data_dir")), **of)

    return cast(F, run)


def on_packed(
    workspace: Workspace,
    look: Callable[[Workspace], Any],
    dataset: str = defaults.DATASET,
    limit: int | None = None,
    data_dir: Path | None = None,
    subset: str | None = None,
    progress: Progress = silent,
    from_file: bool = False,
) -> Any:
    """What `look` tells of the workspace; where that lacks the packed data, of a temporary one that has them, and all
    else of it by links: then it tells too what packing takes (`packs`), or the first of what it tells does. A subset,
    or a `from_file`, named the data set, and not the user. Raises FailureError for data that would have to be
    downloaded, and for an image folder, which may be too large to be packed for this."""
    if subset is not None:
        known = open_bundle(workspace.subset(subset)).data
        dataset, limit = known.dataset, known.limit
    check_dataset(dataset, limit)
    key = data_key(dataset, limit)
    if (workspace.data(key) / "data.json").is_file():
        return look(workspace)
    refuse_download(dataset, limit, data_dir)
    if is_image_folder(without_noise(dataset)):
        base = data_key(without_noise(dataset), limit)
        missing = key if (workspace.data(base) / "data.json").is_file() else base
        make = pack_command(missing).removesuffix(" --force")
        raise FailureError(f"{workspace.data(missing)}: not packed yet. Run: {make} (--dry-run tells what that takes)")
    with TemporaryDirectory(prefix="kdtool-dry-run-") as folder:
        there = Workspace(Path(folder))
        _linked(workspace.root, there.root)
        try:
            start_s = time.perf_counter()
            from_file = from_file or subset is not None
            ensure_packed(there, dataset, data_dir, limit, progress=progress, from_file=from_file)
            seconds = time.perf_counter() - start_s
            new = [path for path in (there.root / "data").iterdir() if not path.is_symlink() and path.is_dir()]
            size = sum(file.stat().st_size for path in new for file in path.iterdir())
            packs = {"path": str(workspace.data(key)), "bytes": size, "minutes": seconds / 60}
            return renamed(_with(packs, look(there)), folder, str(workspace.root))
        except (FailureError, UsageError) as error:
            raise type(error)(str(error).replace(folder, str(workspace.root))) from error


def _with(packs: dict[str, Any], told: Any) -> Any:
    """Of several things that a command would make the first one packs."""
    if isinstance(told, list):
        return [{**told[0], "packs": packs}, *told[1:]]
    return {**told, "packs": packs}


def refuse_download(dataset: str, limit: int | None, data_dir: Path | None) -> None:
    """Raises FailureError for a data set known by name that does not lie on this machine."""
    base = without_noise(dataset)
    if not is_reference(base) and not is_image_folder(base) and lies_in(base, data_dir) is None:
        raise FailureError(
            f"data set {base}: not found on this machine, and a dry run downloads nothing. "
            f"Run: {pack_command(data_key(base, limit))}, or add --data-dir FOLDER"
        )


def renamed(told: Any, old: str, new: str) -> Any:
    """With `new` for `old` in every string."""
    if isinstance(told, dict):
        return {key: renamed(value, old, new) for key, value in told.items()}
    if isinstance(told, list):
        return [renamed(value, old, new) for value in told]
    return told.replace(old, new) if isinstance(told, str) else told


def _linked(source: Path, into: Path) -> None:
    """Everything in `source` by links in `into`, and its data sets each: new ones may be written beside them."""
    (into / "data").mkdir()
    for place, there in ((source, into), (source / "data", into / "data")):
        for found in place.glob("[!.]*"):
            if found != source / "data":
                (there / found.name).symlink_to(found.resolve())
