"""kdtool export: a network's weights as a plain state_dict; and a checkpoint's network for one's own code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError, UsageError, nearest
from toolkit.core.imported import is_reference
from toolkit.formats.cache import is_imported
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.imported_teachers import caches_of
from toolkit.pipeline.known_teachers import PRETRAINED_FOLDER

if TYPE_CHECKING:
    from torch import nn

    from toolkit.formats.checkpoint import Checkpoint

_MADE_BY = "kdtool distill or kdtool train-teacher"


def export(
    what: Place, *, out: Place, workspace: Workspace | Place = defaults.WORKSPACE, force: bool = False
) -> dict[str, Any]:
    """Writes the weights of a run or a teacher (a name, a folder or a checkpoint file) to `out` by torch.save: a dict
    of tensors, which torch.load(…, weights_only=True) reads, with nothing of kdtool in it.

    A file of these very weights is left as it is; another only `force` replaces, and never the checkpoint itself.
    Raises UsageError or FailureError.
    """
    from toolkit.formats.checkpoint import save_torch

    file, out = find_checkpoint(Workspace.at(workspace), os.fspath(what)), as_path(out)
    checkpoint = _load(file)
    unchanged = _is_there(file, out, checkpoint, force)
    if not unchanged:
        save_torch(out, {name: tensor.detach().cpu().clone() for name, tensor in checkpoint.weights.items()})
    return {
        "path": str(out),
        "from": str(file),
        "arch": checkpoint.arch,
        "width": checkpoint.width,
        "classes": checkpoint.classes,
        "dataset": checkpoint.dataset,
        "mean": checkpoint.mean,
        "std": checkpoint.std,
        "top1": checkpoint.top1,
        "tensors": len(checkpoint.weights),
        "network": _in_python(checkpoint),
        "unchanged": unchanged,
    }


def load_network(path: str | Path, arch: str | None = None) -> nn.Module:
    """The network of a checkpoint (student.pt or teacher.pt, or the folder of one), on the CPU, in eval mode.

    It maps (b, 3, h, w) float32 to logits (b, c); what it is fed are pixels of 0 … 1, less `network.input_mean`, over
    `network.input_std`: (3,) float32 tensors. A file never decides what code runs: one of a network of your own
    (module:function) is only loaded where `arch` names it again. Raises UsageError or FailureError.
    """
    import torch

    from toolkit.models.zoo import load_weights
    from toolkit.pipeline.known_networks import built_for

    file = _in_folder(Path(path))
    checkpoint = _load(file)
    if arch not in (None, checkpoint.arch):
        raise UsageError(f"{file}: its network is {checkpoint.arch}, not {arch}. Leave arch out, or name that")
    if arch is None and is_reference(checkpoint.arch):
        raise UsageError(f"{file}: of a network of your own. Name it again: load_network(…, arch='{checkpoint.arch}')")
    network = built_for(file, checkpoint.arch, checkpoint.classes, checkpoint.width, asked_for=arch is not None)
    load_weights(network, checkpoint.weights, str(file))
    network.input_mean, network.input_std = (torch.tensor(values) for values in (checkpoint.mean, checkpoint.std))
    return network.eval()


def find_checkpoint(workspace: Workspace, what: str) -> Path:
    """The checkpoint of a file, a folder, a run's or a teacher's name.

    Raises UsageError for a name that is both, FailureError where there is none.
    """
    if Path(what).is_file():
        return Path(what)
    if Path(what).is_dir() and _in_folder(Path(what)).is_file():
        return _in_folder(Path(what))
    if "/" in what:
        raise FailureError(f"{what}: no checkpoint there (student.pt or teacher.pt). Run: {_MADE_BY}")
    places = [workspace.run(what) / "student.pt", workspace.teacher(what) / "teacher.pt"]
    there = [path for path in [*places, PRETRAINED_FOLDER / f"{what}.pt"] if path.is_file()]
    if places == there[:2]:
        raise UsageError(f"{what}: both a run and a teacher. Name the file: {there[0]} or {there[1]}")
    if there:
        return there[0]
    imported = [path for path in caches_of(workspace, what) if is_imported(path)]
    if imported:
        raise FailureError(
            f"{imported[0]}: imported logits, so there is no network of {what} to export. Name a run, or "
            "a teacher that was trained"
        )
    if (workspace.run(what) / "checkpoint.pt").is_file():
        raise FailureError(f"{places[0]}: not there, so the run is not finished. Run: kdtool distill --name {what}")
    made = [path for kind in ("runs/*/student.pt", "teachers/*/teacher.pt") for path in workspace.root.glob(kind)]
    known = sorted(path.parent.name for path in made) + sorted(path.stem for path in PRETRAINED_FOLDER.glob("*.pt"))
    near = " or ".join(nearest(what, known, 3) or known[:5])
    raise FailureError(f"{what}: neither a file nor a run or teacher here. Did you mean {near}? Or run: {_MADE_BY}")


def _load(file: Path) -> Checkpoint:
    """Raises FailureError for a file that is damaged, or no checkpoint, or weights alone already."""
    from toolkit.formats.checkpoint import Checkpoint, load_network

    found = load_network(file, _MADE_BY)
    if not isinstance(found, Checkpoint):
        raise FailureError(
            f"{file}: a plain state_dict already. Load it by torch.load(…, weights_only=True) into its network"
        )
    return found


def _in_folder(path: Path) -> Path:
    """The checkpoint in a run's or a teacher's folder; a path that is no folder as it is."""
    if not path.is_dir():
        return path
    names = [path / "student.pt", path / "teacher.pt"]
    return next((name for name in names if name.is_file()), names[0])


def _is_there(file: Path, out: Path, checkpoint: Checkpoint, force: bool) -> bool:
    """Whether `out` holds these very weights. Raises UsageError for a file that may not be written over."""
    import torch

    from toolkit.formats.checkpoint import load_torch

    if out.is_dir():
        raise UsageError(f"--out {out}: a folder. Name a file in it")
    if not out.exists():
        return False
    if out.samefile(file):
        raise UsageError(f"--out {out}: the checkpoint itself. Name another file")
    if force:
        return False
    try:
        found = load_torch(out, "")
    except FailureError:
        found = {}
    wanted = checkpoint.weights
    same = found.keys() == wanted.keys() and all(
        isinstance(found[name], torch.Tensor) and torch.equal(found[name], wanted[name]) for name in wanted
    )
    if not same:
        raise UsageError(f"--out {out}: another file is there. Name another, or pass --force to replace it")
    return True


def _in_python(checkpoint: Checkpoint) -> str:
    """The network that the weights fit, as an expression."""
    from toolkit.models.zoo import CIFAR_RESNETS

    arch, classes = checkpoint.arch, checkpoint.classes
    if is_reference(arch):
        return f"{arch.replace(':', '.')}({classes})"
    if arch in CIFAR_RESNETS:
        return f'toolkit.models.zoo.build_model("{arch}", {classes}, width={checkpoint.width})'
    return f'torchvision.models.get_model("{arch.removeprefix("torchvision:")}", num_classes={classes})'
