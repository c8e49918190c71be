"""Checkpoints: a network's weights and everything needed to use them, or the weights alone, as torch keeps them. Loaded
with `weights_only=True`, always."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.core.errors import FailureError
from toolkit.core.files import DeferringFile, did_you_mean_path, whole_file
from toolkit.core.hashing import fingerprint
from toolkit.core.records import record_of

_FORMAT = "kdtool checkpoint 1"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # under which training scripts keep a network's weights
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """`mean` and `std` normalise 0 … 1 pixel values; `data_fingerprint` is the training split's."""

    arch: str
    width: int
    classes: int
    dataset: str
    data_fingerprint: str
    mean: list[float]
    std: list[float]
    seed: int
    top1: float
    settings: dict[str, Any]
    versions: dict[str, str]
    weights: dict[str, Tensor] = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of SHA-256 over architecture, normalisation and weights."""
        return weights_fingerprint(f"{self.arch} {self.width} {self.classes} {self.mean} {self.std}", self.weights)


def save_torch(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path) as temporary, DeferringFile(temporary) as disk:
        torch.save(content, disk)


def load_torch(path: Path, made_by: str) -> dict[str, Any]:
    """What `save_torch` wrote, on the CPU. Raises FailureError when missing, damaged or more than plain values."""
    if not path.is_file():
        raise FailureError(f"{path}: not found. {did_you_mean_path(path)}Run: {made_by}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch also warns of files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it unsafely
        reason = (
            "it is none, or holds more than tensors and plain values, which is never loaded; "
            "of a network of your own, save model.state_dict()"
        )
        raise FailureError(f"{path}: not a readable checkpoint ({reason}). Run: {made_by}") from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise FailureError(f"{path}: not a readable checkpoint ({reason}). Run: {made_by}") from error
    if not isinstance(content, dict):
        raise FailureError(f"{path}: expected a checkpoint, found {type(content).__name__}. Run: {made_by}")
    return content


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    fields = {name: getattr(checkpoint, name) for name in asdict(checkpoint)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    save_torch(path, {"format": _FORMAT, **fields, "weights": weights})


def load_checkpoint(path: Path, made_by: str = "kdtool train-teacher") -> Checkpoint:
    """Raises FailureError when `path` is missing, damaged or of another format."""
    return _checkpoint(path, load_torch(path, made_by), made_by)


def load_network(path: Path, made_by: str = "kdtool train-teacher") -> Checkpoint | dict[str, Tensor]:
    """A checkpoint, or the weights by name of a plain state_dict. Raises FailureError when `path` is neither."""
    content = load_torch(path, made_by)
    weights = None if "format" in content else plain_weights(content)
    return _checkpoint(path, content, made_by) if weights is None else weights


def plain_weights(content: dict[str, Any]) -> dict[str, Tensor] | None:
    """The weights in a state_dict, or in a training script's {"state_dict": …} or {"model": …}; None in anything
    else."""
    wrapped = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
    weights = wrapped[0] if wrapped else content
    tensors = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items())
    return dict(weights) if weights and tensors else None


def without_prefixes(weights: dict[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The weights by the names that DataParallel, DistributedDataParallel and torch.compile put a prefix before, unless
    the network that wants them has it too."""
    wanted = list(wanted)
    for prefix in _PREFIXES * 2:  # one may be inside the other
        if all(name.startswith(prefix) for name in weights) and not all(name.startswith(prefix) for name in wanted):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def weights_fingerprint(described: str, weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over a description and the weights in the order of their names."""
    numbers = {name: tensor.contiguous().view(-1).view(torch.uint8) for name, tensor in weights.items()}
    arrays = (array for name in sorted(numbers) for array in (name, numbers[name].numpy().tobytes()))
    return fingerprint(described, *arrays)


def _checkpoint(path: Path, content: dict[str, Any], made_by: str) -> Checkpoint:
    if content.pop("format", None) != _FORMAT:
        raise FailureError(f"{path}: not a kdtool checkpoint ('{_FORMAT}'), nor a plain state_dict. Run: {made_by}")
    try:
        checkpoint = record_of(Checkpoint, content)
        if not len(checkpoint.mean) == len(checkpoint.std) == 3 or not all(value > 0 for value in checkpoint.std):
            raise ValueError(f"mean {checkpoint.mean} and std {checkpoint.std}, expected three of each, std above 0")
    except ValueError as error:
        raise FailureError(f"{path}: not a checkpoint of this version ({error}). Run: {made_by}") from error
    return checkpoint
