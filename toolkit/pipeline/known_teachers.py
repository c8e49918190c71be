"""Finding a teacher by name or file, without torch: subsets are built from what a teacher left behind."""

from __future__ import annotations

import filecmp
from pathlib import Path

from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.cache import open_cache
from toolkit.formats.workspace import Workspace

PRETRAINED_FOLDER = Path(__file__).parent.parent / "pretrained"
PRETRAINED = {"fashion-mnist": "fashion-mnist-resnet20", "digits": "digits-resnet8"}


def is_file_name(teacher: str) -> bool:
    """Whether --teacher says a file, there or not, and no teacher's name."""
    return "/" in teacher or Path(teacher).is_file()


def name_of_file(teacher: str) -> str:
    """What a teacher in a file is called: as the file, or as its folder where that is teacher.pt or student.pt."""
    file = Path(teacher).absolute()
    return file.parent.name if file.stem in ("teacher", "student") else file.stem


def _places(workspace: Workspace, name: str) -> tuple[Path, Path]:
    """Where the checkpoint of a name may be."""
    return workspace.teacher(name) / "teacher.pt", PRETRAINED_FOLDER / f"{name}.pt"


def find_teacher(workspace: Workspace, teacher: str | None, dataset: str) -> tuple[str, Path]:
    """(name, checkpoint) of a teacher: a file, one trained in the workspace, a packaged one, or the data set's default.

    Raises FailureError that says what to run when there is none, and UsageError for a file that is missing, or has
    another's name.
    """
    if teacher is None:
        if dataset not in PRETRAINED:
            raise FailureError(
                f"no teacher for {dataset} comes with kdtool. Run: kdtool train-teacher --dataset {dataset}, "
                "then pass its name as --teacher"
            )
        teacher = PRETRAINED[dataset]
    if is_file_name(teacher):
        name, file = name_of_file(teacher), Path(teacher)
        if not file.is_file():
            raise UsageError(f"--teacher {teacher}: not found. Name a file that is there, or a teacher")
        other = next((path for path in _places(workspace, name) if path.is_file()), file)
        if not filecmp.cmp(other, file, shallow=False):
            raise UsageError(f"--teacher {teacher}: {name} is the name of another teacher, {other}. Rename the file")
        return name, file
    for path in _places(workspace, teacher):
        if path.is_file():
            return teacher, path
    cached = sorted(workspace.teacher(teacher).glob("cache*.h5"))
    if cached:
        with open_cache(cached[0]) as cache:
            raise FailureError(
                f"--teacher {teacher}: no network of that name is here: {cached[0]} was made from a file. "
                f"Name it, and its --arch, as in: {cache.record.command}"
            )
    trained = sorted(path.parent.name for path in workspace.root.glob("teachers/*/teacher.pt"))
    known = ", ".join([*trained, *PRETRAINED.values()])
    raise FailureError(
        f"--teacher {teacher}: neither a file nor a teacher known here ({known}). "
        f"Run: kdtool train-teacher --dataset {dataset} --name {teacher}"
    )
