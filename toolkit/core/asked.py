"""What callers from Python may say in more than one way: a path as text, and one value where several may stand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

Place = str | os.PathLike[str]


@overload
def as_path(place: Place) -> Path: ...
@overload
def as_path(place: Place | None) -> Path | None: ...
def as_path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def as_paths(places: Place | Sequence[Place]) -> list[Path]:
    """Of one place, or of several."""
    return [Path(places)] if isinstance(places, (str, os.PathLike)) else [Path(place) for place in places]


@overload
def several(said: str | Sequence[str]) -> tuple[str, ...]: ...
@overload
def several(said: int | Sequence[int]) -> tuple[int, ...]: ...
def several(said: object) -> tuple[object, ...]:
    """One value, or all of a sequence: text is one value, never its letters."""
    return tuple(said) if isinstance(said, Sequence) and not isinstance(said, str) else (said,)
