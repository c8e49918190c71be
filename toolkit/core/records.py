"""Records read back from disk: a dataclass from a dict, its fields checked to be there and of the types declared."""

from __future__ import annotations

import types
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type: a plain one, Any, `X | None`, list[X] or dict[str, X]."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, Union):
        return any(_is(value, choice) for choice in inner)
    if origin is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if kind in (int, float):  # to Python a bool is an int, and an int is no float
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind)


def record_of(cls: type[T], content: Any) -> T:
    """`content` as a `cls`, a dataclass. Raises ValueError naming what is missing, unknown or of another type.

    A field with a default may be missing: a record of an older version had no such field."""
    if not isinstance(content, dict):
        raise ValueError(f"expected named fields, found {type(content).__name__}")
    kinds = get_type_hints(cls)
    needed = {field.name for field in fields(cls) if field.default is MISSING}  # type: ignore[arg-type]
    missing = [name for name in kinds if name in needed and name not in content]
    unknown = [str(name) for name in content if name not in kinds]
    if missing or unknown:
        raise ValueError(f"lacks {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}")
    for name, kind in kinds.items():
        if name in content and not _is(content[name], kind):
            declared = kind if get_args(kind) else kind.__name__
            raise ValueError(f"{name} is {str(content[name])[:40]!r}, expected {declared}")
    return cls(**content)
