"""Finding a teacher by name or file, without torch: subsets are built from what a teacher left behind."""

from __future__ import annotations

import filecmp
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from toolkit.core.errors import FailureError, UsageError, did_you_mean
from toolkit.core.imported import LIBRARIES
from toolkit.formats.cache import open_cache
from toolkit.formats.workspace import Workspace

if TYPE_CHECKING:
    from toolkit.models.pretrained import PretrainedTeacher

PRETRAINED_FOLDER = Path(__file__).parent.parent / "pretrained"
_LIBRARYS_NAME = re.compile(r"timm-(?P<timm>.+)|(?P<network>[a-z0-9_]+)-(?P<weights>[A-Z][A-Z0-9_]*)", re.ASCII)
PRETRAINED = {"fashion-mnist": "fashion-mnist-resnet20", "digits": "digits-resnet8"}


class FoundTeacher(NamedTuple):
    """What its artifacts are called, the file of its weights, and of torchvision's and timm's, whose file may be yet to
    be downloaded, the library's record."""

    name: str
    file: Path
    library: PretrainedTeacher | None = None


def is_of_library(teacher: str) -> bool:
    """Whether --teacher says one of torchvision's or timm's: torchvision:resnet50@IMAGENET1K_V2."""
    return teacher.startswith(LIBRARIES)


def is_file_name(teacher: str) -> bool:
    """Whether --teacher says a file, there or not, and no teacher's name."""
    return not is_of_library(teacher) and ("/" in teacher or Path(teacher).is_file())


def name_of(teacher: str) -> str:
    """What the artifacts of a teacher are called that is said by a file, as a library's, or by that name.

    A library is imported only where its usual weights are meant. Raises as `pretrained_teacher` does.
    """
    if not is_of_library(teacher):
        return name_of_file(teacher) if is_file_name(teacher) else teacher
    library, _, name = teacher.partition(":")
    network, _, weights = name.partition("@")
    if library == "torchvision" and weights not in ("", "DEFAULT"):
        return f"{network}-{weights}"
    return f"timm-{name}" if library == "timm" and "." in name else _from_library(teacher).name


def _called_in_library(name: str) -> PretrainedTeacher | None:
    """The teacher whose artifacts have this name, which its reference is read from; or None."""
    said = _LIBRARYS_NAME.fullmatch(name)
    if said is None:
        return None
    try:
        found = _from_library(
            f"timm:{said['timm']}" if said["timm"] else f"torchvision:{said['network']}@{said['weights']}"
        )
    except (UsageError, FailureError):  # it only looks like one
        return None
    return found if found.name == name else None


def _from_library(teacher: str) -> PretrainedTeacher:
    from toolkit.models.pretrained import pretrained_teacher

    return pretrained_teacher(teacher)


def name_of_file(teacher: str) -> str:
    """What a teacher in a file is called: as the file, or as its folder where that is teacher.pt or student.pt."""
    file = Path(teacher).absolute()
    return file.parent.name if file.name in ("teacher.pt", "student.pt") else file.stem


def _places(workspace: Workspace, name: str) -> tuple[Path, Path]:
    """Where the checkpoint of a name may be."""
    return workspace.teacher(name) / "teacher.pt", PRETRAINED_FOLDER / f"{name}.pt"


def find_teacher(workspace: Workspace, teacher: str | None, dataset: str) -> FoundTeacher:
    """A teacher by a file, as a library's, or by name: one trained in the workspace, a packaged one, a library's whose
    artifacts are called so, or the data set's default.

    Raises FailureError that says what to run when there is none, and UsageError for a file that is missing, or has
    another's name, and as `pretrained_teacher` does. Nothing is downloaded.
    """
    if teacher is None:
        if dataset not in PRETRAINED:
            raise FailureError(
                f"--teacher: no teacher for {dataset} comes with kdtool. Run: kdtool train-teacher "
                f"--dataset {dataset}, "
                "then pass its name as --teacher"
            )
        teacher = PRETRAINED[dataset]
    if is_of_library(teacher):
        return _in_library(workspace, teacher, _from_library(teacher))
    if is_file_name(teacher):
        name, file = name_of_file(teacher), Path(teacher)
        if not file.is_file():
            raise UsageError(f"--teacher {teacher}: not found. Name a file that is there, or a teacher")
        other = next((path for path in _places(workspace, name) if path.is_file()), file)
        if not filecmp.cmp(other, file, shallow=False):
            raise UsageError(f"--teacher {teacher}: {name} is the name of another teacher, {other}. Rename the file")
        return FoundTeacher(name, file)
    for path in _places(workspace, teacher):
        if path.is_file():
            return FoundTeacher(teacher, path)
    library = _called_in_library(teacher)
    if library is not None:
        return _in_library(workspace, teacher, library)
    cached = sorted(workspace.teacher(teacher).glob("cache*.h5"))
    if cached:
        with open_cache(cached[0]) as cache:
            raise FailureError(
                f"--teacher {teacher}: no network of that name is here: {cached[0]} was made from a file. "
                f"Name it, and its --arch, as in: {cache.record.command}"
            )
    trained = sorted(path.parent.name for path in workspace.root.glob("teachers/*/teacher.pt"))
    known = [*trained, *PRETRAINED.values()]
    raise FailureError(
        f"--teacher {teacher}: neither a file nor a teacher known here ({', '.join(known)}). "
        f"{did_you_mean(teacher, known)}Run: kdtool train-teacher --dataset {dataset} --name {teacher}, "
        "or name a library's: torchvision:resnet50"
    )


def _in_library(workspace: Workspace, teacher: str, found: PretrainedTeacher) -> FoundTeacher:
    from toolkit.models.weight_files import weights_path

    other = next((path for path in _places(workspace, found.name) if path.is_file()), None)
    if other is not None:
        raise UsageError(f"--teacher {teacher}: {found.name} is the name of another, {other}. Rename its folder")
    return FoundTeacher(found.name, weights_path(found), found)
