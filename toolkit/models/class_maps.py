"""Which of a teacher's classes each class of the data is: by their names, as ImageNet calls their folders (n01440764),
or as a class map says.

Shapes: c classes of the data, t of the teacher, in that order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import fingerprint
from toolkit.models.counting import counted
from toolkit.models.heads import head_of
from toolkit.models.pretrained import PretrainedTeacher, wordnet_numbers

# of ImageNet's 1,000 folders (n01440764 …), sorted and joined by line ends: the order its classes are numbered in
IMAGENET_FOLDERS = "385e0240499426c0"
_IMAGENETS = re.compile(r"n\d{8}", re.ASCII)
_TOLD = 3


@dataclass(frozen=True)
class ClassMap:
    """`columns_c`: the teacher's class that each of the data's is, or None where they are the same in the same order.
    `said` tells it in words; `by_name` is False of the same classes by other names."""

    columns_c: tuple[int, ...] | None
    said: str
    by_name: bool = True


def matched(names_c: Sequence[str], teacher: PretrainedTeacher) -> ClassMap:
    """The map by names, case and underscores aside, or of ImageNet's folders. Raises UsageError naming classes of the
    data that are none of the teacher's, or not just one."""
    everything = f"its {teacher.classes:,} classes as they are"
    if teacher.imagenet and fingerprint("\n".join(names_c)) == IMAGENET_FOLDERS:
        return ClassMap(None, everything, by_name=False)
    unmatched, hint = list(names_c), ""
    for names_t in _ways_of_naming(names_c, teacher):
        if [_plain(name) for name in names_c] == [_plain(name) for name in names_t]:
            return ClassMap(None, everything)
        numbers = _numbers(names_c, names_t)
        meant = Counter(numbers)
        alone = [name for name, number in zip(names_c, numbers, strict=True) if number < 0 or meant[number] > 1]
        if not alone:
            return ClassMap(tuple(numbers), f"{len(numbers):,} of its {teacher.classes:,} classes, by name")
        unmatched = min(unmatched, alone, key=len)
    if teacher.imagenet and any(map(_IMAGENETS.fullmatch, unmatched)) and wordnet_numbers() is None:
        hint = "timm knows ImageNet's folders by these names: pip install 'kdtool[timm]'. Or say"
    raise UsageError(
        f"--teacher {teacher.reference}: {len(unmatched):,} of the data's {len(names_c):,} classes are not found by "
        f"name among its {teacher.classes:,} ({_some(unmatched)}). {hint or 'Say'} which they are: cache-teacher "
        "--class-map FILE, YAML or JSON, with a name or number of the teacher's for each class of the data"
    )


def mapped(names_c: Sequence[str], teacher: PretrainedTeacher, file: Path) -> ClassMap:
    """The map in a YAML or JSON file: the teacher's class, by name or number from 0, for each class of the data.

    Raises UsageError for classes that are missing, unknown, or stand there twice on either side, and FailureError for a
    file that can't be read.
    """
    said = _read(file)
    missing, unknown = [name for name in names_c if name not in said], [name for name in said if name not in {*names_c}]
    if missing or unknown:
        what = f"lacks {_some(missing)}" if missing else f"names {_some(unknown)}, which the data have not"
        raise UsageError(f"--class-map {file}: {what}. It needs each of the data's {len(names_c):,} classes once")
    wanted = [said[name] for name in names_c]
    by_name = [_numbers(wanted, names_t) for names_t in _ways_of_naming(wanted, teacher)]
    numbers = [
        _checked_number(said[name], max(found, default=-1), teacher, f"--class-map {file}: {name}")
        for name, *found in zip(names_c, *by_name, strict=True)
    ]
    taken: dict[int, str] = {}
    for name, number in zip(names_c, numbers, strict=True):
        if number in taken:
            raise UsageError(
                f"--class-map {file}: {taken[number]} and {name} are both the teacher's class {number}, which can't "
                "tell them apart. Give each another"
            )
        taken[number] = name
    content = fingerprint("\n".join(map(str, numbers)))
    return ClassMap(tuple(numbers), f"{len(numbers):,} of its {teacher.classes:,} classes, by {file.name} ({content})")


class Columns(nn.Module):
    """A network that gives only these of another's logits, (b, t) → (b, c)."""

    def __init__(self, network: nn.Module, columns_c: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        self.columns_c: Tensor
        self.register_buffer("columns_c", torch.tensor(columns_c))

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.network(x_bchw)[:, self.columns_c]


def only_classes(network: nn.Module, columns_c: Sequence[int]) -> nn.Module:
    """The network, giving these of its logits in this order.

    Where its last linear layer is known (`head_of`, asked before) that keeps these rows alone, so that it goes on being
    read in float32; the features stay as they are. Else the network is wrapped.
    """
    head = head_of(network)
    if head is None:
        return counted(Columns(network, columns_c))
    with torch.no_grad():
        rows_c = torch.tensor(columns_c, device=head.weight.device)
        head.weight = nn.Parameter(head.weight[rows_c])
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias[rows_c])
    head.out_features = len(columns_c)
    return network


def _ways_of_naming(names: Sequence[str], teacher: PretrainedTeacher) -> tuple[tuple[str, ...], ...]:
    """The teacher's own, and where any of these names is one, what ImageNet calls the folders of its classes."""
    if not teacher.imagenet or not any(map(_IMAGENETS.fullmatch, names)):
        return teacher.class_names
    folders = wordnet_numbers()
    return teacher.class_names if folders is None else (*teacher.class_names, folders)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _numbers(names: Iterable[str], names_t: Sequence[str]) -> list[int]:
    """Of the teacher's class of each name, as it is written or else by `_plain`; -1 where there is none, or not one."""
    exact, near = _by_name(names_t), _by_name([_plain(name) for name in names_t])
    found = (exact.get(name) or near.get(_plain(name)) or [] for name in names)
    return [numbers[0] if len(numbers) == 1 else -1 for numbers in found]


def _by_name(names_t: Sequence[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, name in enumerate(names_t):
        numbers.setdefault(name, []).append(number)
    return numbers


def _checked_number(said: str, by_name: int, teacher: PretrainedTeacher, where: str) -> int:
    if said.isdecimal():
        if len(said) > 9 or int(said) >= teacher.classes:
            raise UsageError(f"{where}: {said[:20]}, but the teacher's classes are 0 to {teacher.classes - 1}")
        return int(said)
    if by_name < 0:
        raise UsageError(f"{where}: '{said}' is not the name of just one class of {teacher.reference}. Give its number")
    return by_name


def _read(file: Path) -> dict[str, str]:
    """What stands in the file, all of it as text: YAML would take some names for numbers, or for true and false."""
    import yaml

    try:
        tree = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise FailureError(f"--class-map {file}: not readable ({reason}). Name a YAML or JSON file") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else str(error).splitlines()[0]
        raise UsageError(
            f"--class-map {file}: neither YAML nor JSON ({where}). Mend it, or name another file"
        ) from error
    pairs = tree.value if isinstance(tree, yaml.MappingNode) else []
    if not pairs or not all(isinstance(one, yaml.ScalarNode) for pair in pairs for one in pair):
        raise UsageError(f"--class-map {file}: expected a teacher's class for each of the data's, such as 'tabby: 281'")
    said = {key.value: value.value for key, value in pairs}
    if len(said) < len(pairs):
        keys = [key.value for key, _ in pairs]
        twice = [key for key in said if keys.count(key) > 1]
        raise UsageError(f"--class-map {file}: {_some(twice)} stand there twice. Keep each once")
    return said


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", …" if len(names) > _TOLD else "")
