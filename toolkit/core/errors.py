"""The errors a user may meet. Each is one line that says what, found, and what to run next."""

from __future__ import annotations


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
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return UsageError(f"unknown {kind} '{name}': {hint}known are {', '.join(known)}")
