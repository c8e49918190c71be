"""The errors a user may meet. Each is one line that says what, found, and what to run next."""

from __future__ import annotations

from collections.abc import Iterable

_LISTED = 40  # names, where there are more: torchvision has a hundred networks


class KdtoolError(Exception):
    """Something the user can mend; the command line prints it as one line. `exit_code` is the command's."""

    exit_code = 1


class FailureError(KdtoolError):
    """An input, an artifact or the machine is not as needed: exit code 1."""


class UsageError(KdtoolError, ValueError):
    """The command was asked for something that cannot be: exit code 2."""

    exit_code = 2


def unknown_name(kind: str, name: str, known: list[str]) -> UsageError:
    """The error for a name that is not in one of our dicts, with the nearest known one."""
    near = nearest(name, known)
    hint = f"did you mean {near[0]}? " if near else ""
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return UsageError(f"unknown {kind} '{name}': {hint}known are {', '.join(known[:_LISTED])}{more}")


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known names that are most like `name`, none where none is."""
    from difflib import get_close_matches

    return get_close_matches(name, list(known), n=count)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Did you mean digits-resnet8? `, to stand before what else there is to do; nothing where no name is near."""
    near = nearest(name, known)
    return f"Did you mean {near[0]}? " if near else ""
