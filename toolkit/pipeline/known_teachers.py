"""Finding a teacher by name or file, without torch: subsets are built from what a teacher left behind."""

from __future__ import annotations

from pathlib import Path

from toolkit.core.errors import FailureError
from toolkit.formats.workspace import Workspace

PRETRAINED_FOLDER = Path(__file__).parent.parent / "pretrained"
PRETRAINED = {"fashion-mnist": "fashion-mnist-resnet20", "digits": "digits-resnet8"}


def find_teacher(workspace: Workspace, teacher: str | None, dataset: str) -> tuple[str, Path]:
    """(name, checkpoint) of a teacher: a file, one trained in the workspace, a packaged one, or the data set's default.

    Raises FailureError that says what to run when there is none.
    """
    if teacher is None:
        if dataset not in PRETRAINED:
            raise FailureError(
                f"no teacher for {dataset} comes with kdtool. Run: kdtool train-teacher --dataset {dataset}, "
                "then pass its name as --teacher"
            )
        teacher = PRETRAINED[dataset]
    if Path(teacher).is_file():
        file = Path(teacher)
        return (file.parent.name if file.stem in ("teacher", "student") else file.stem), file
    for path in (workspace.teacher(teacher) / "teacher.pt", PRETRAINED_FOLDER / f"{teacher}.pt"):
        if path.is_file():
            return teacher, path
    trained = sorted(path.parent.name for path in workspace.root.glob("teachers/*/teacher.pt"))
    known = ", ".join([*trained, *PRETRAINED.values()])
    raise FailureError(
        f"--teacher {teacher}: neither a file nor a teacher known here ({known}). "
        f"Run: kdtool train-teacher --dataset {dataset} --name {teacher}"
    )
