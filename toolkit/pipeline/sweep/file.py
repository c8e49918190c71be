"""A sweep from a YAML file and options: every value of its own type, and what an option says overrides the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError, UsageError, unknown_name
from toolkit.formats.workspace import Workspace, checked_name
from toolkit.pipeline.sweep.request import AXES, Sweep
from toolkit.pipeline.sweep.table import sweep_folder
from toolkit.training.run import differing


def read_sweep(file: Path | None, options: Mapping[str, Any]) -> tuple[Sweep, str]:
    """The sweep that a YAML file and options ask for, with its name; what an option says overrides the file.

    `options` maps field names of Sweep, and `name`, to what the user gave. Raises UsageError or FailureError.
    """
    said = {} if file is None else _from_yaml(file)
    given = {key: _value(key, value, f"--{_option(key)}") for key, value in options.items()}
    merged = {**said, **given}
    name = merged.pop("name", None)
    if "frac" not in merged:
        raise UsageError("--frac is missing: which fractions of the training rows to keep, such as --frac 0.1")
    asked = Sweep(**merged)
    if name is None and file is not None:
        changed = any(key not in said or said[key] != value for key, value in given.items())
        name = file.stem if not changed else f"{file.stem}-{asked.default_name.rpartition('-')[2]}"
    return asked, checked_name(asked.default_name if name is None else name)


def need_same_study(workspace: Workspace, name: str, asked: Sweep) -> None:
    """Raises UsageError, naming how, where what all cells share is not what an earlier sweep of that name says: one
    table would hold two studies."""
    path = sweep_folder(workspace, name) / "sweep.yaml"
    if not path.is_file():
        return
    earlier, _ = read_sweep(path, {})
    difference = differing(earlier.shared, asked.shared)
    if difference:
        raise UsageError(
            f"{path}: a sweep whose cells share other settings ({difference}). Give this one another --name, or delete "
            f"{path.parent}: its runs stay"
        )


def _from_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise FailureError(f"{file}: not readable ({reason}). Name the YAML file of a sweep") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: {getattr(error, 'problem', None)}" if mark else str(error).splitlines()[0]
        raise UsageError(f"{file}: not YAML ({where}). Mend it, or name another file") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected keys and values such as 'frac: [0.1, 0.5]', found {type(content).__name__}")
    said: dict[str, Any] = {}
    for key, value in content.items():
        known = _field(str(key))
        if known not in _KINDS:
            raise UsageError(f"{file}: {unknown_name('key', str(key), [_option(name) for name in _KINDS])}")
        if known in said:
            raise UsageError(f"{file}: {_option(known)} stands there twice. Keep one")
        said[known] = _value(known, value, f"{file}: {_option(known)}")
    return said


def _field(option: str) -> str:
    return option.replace("-", "_")


def _option(field: str) -> str:
    return field.replace("_", "-")


def _value(key: str, value: Any, where: str) -> Any:
    """A field's value, of its own type; of an axis all its values, in a tuple. Raises UsageError, saying `where`."""
    kind = _KINDS[key]
    if key not in AXES:
        return None if value is None and key in _OPTIONAL else _of_kind(kind, value, where)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return tuple(one for value in values for one in _on_axis(key, kind, value, where))


def _on_axis(key: str, kind: str, value: Any, where: str) -> Iterator[Any]:
    if key == "teacher" and value is None:
        yield None
    elif kind == "integer" and (span := re.fullmatch(r"(\d+)\.\.(\d+)", str(value))):
        first, last = int(span[1]), int(span[2])
        if not first <= last < first + 100_000:
            raise UsageError(f"{where}: expected a range from small to large, found '{value}'")
        yield from range(first, last + 1)
    else:
        yield _of_kind(kind, value, where)


def _of_kind(kind: str, value: Any, where: str) -> Any:
    found = _READ[kind](value)
    if found is None:
        raise UsageError(f"{where}: expected {_EXPECTED[kind]}, found {_shown(value)}")
    return found


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else f"{value} ({type(value).__name__})"


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)  # YAML reads 1e-3 as text
    except ValueError:
        return None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    return int(value) if re.fullmatch(r"-?\d+", str(value)) else None


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _alpha(value: Any) -> float | str | None:
    return value if value in ("auto", "search") else _number(value)


_READ = {
    "number": _number,
    "integer": _integer,
    "text": _text,
    "flag": lambda value: value if isinstance(value, bool) else None,
    "alpha": _alpha,
}
_EXPECTED = {
    "number": "a number",
    "integer": "a whole number",
    "text": "a word",
    "flag": "true or false",
    "alpha": "a number, auto or search",
}
_KINDS = {
    **dict.fromkeys(("frac", "temperature", "center", "drop_hardest", "beta"), "number"),
    **dict.fromkeys(("lr", "label_smoothing", "ema"), "number"),
    **dict.fromkeys(("seed", "limit", "min_per_class", "subset_seed"), "integer"),
    **dict.fromkeys(("epochs", "iterations", "batch_size", "width"), "integer"),
    **dict.fromkeys(("method", "loss", "match", "arch", "teacher"), "text"),
    **dict.fromkeys(("name", "dataset", "score", "views", "recipe", "device", "precision"), "text"),
    **dict.fromkeys(("balance", "nested", "weights", "compile"), "flag"),
    "alpha": "alpha",
}
_OPTIONAL = {"name", *(field.name for field in fields(Sweep) if field.default is None)}
