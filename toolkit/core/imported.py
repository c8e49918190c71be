"""Code of one's own, named on the command line as module:function: found, imported, and its errors told in one line."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.core.errors import UsageError
from toolkit.core.hashing import fingerprint

LIBRARIES = ("torchvision:", "timm:")  # whose networks are known by name
_LONGEST = 200  # characters of someone else's error message


def is_reference(name: str) -> bool:
    """Whether a name is of one's own code, module:function, and not one that kdtool knows."""
    return ":" in name and not name.startswith(LIBRARIES)


def imported(reference: str, what: str) -> Callable[..., Any]:
    """The function or class that `module:function` names; both may be dotted. `what` is the option that named it.

    Modules are looked for in the current folder first, then on Python's path. Raises UsageError, in one line, for a
    module that is not there or fails while it is imported, an attribute it lacks, and one that can't be called.
    """
    module_name, attributes = checked_reference(reference, what)
    found: Any = _module(module_name, f"{what} {reference}")
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise UsageError(f"{what} {reference}: {_place(found, module_name)} has no '{name}'{_near(name, found)}")
        found = getattr(found, name)
    if not callable(found):
        raise UsageError(f"{what} {reference}: expected a function or a class, found {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def code_settings(name: str, what: str) -> dict[str, str]:
    """What a run's settings say of code of one's own, so that an edited file makes another run: {"code": 16 hexadecimal
    digits of SHA-256 of the file that defines it}; nothing for a name that kdtool knows. Raises UsageError."""
    if not is_reference(name):
        return {}
    function = imported(name, what)
    defined_in = sys.modules.get(str(getattr(function, "__module__", ""))) or sys.modules.get(name.partition(":")[0])
    file = Path(getattr(defined_in, "__file__", None) or "")
    return {"code": fingerprint(file.read_bytes() if file.is_file() else b"")}


def checked_reference(reference: str, what: str) -> tuple[str, str]:
    """(module, function), neither of them looked for. Raises UsageError for anything but Python names and dots."""
    module_name, _, attributes = reference.partition(":")
    is_file = "/" in module_name or module_name.endswith(".py")
    named = all(part.isidentifier() for name in (module_name, attributes) for part in name.split("."))
    if is_file or not named:
        hint = f"a module's name and not a file's: {Path(module_name).stem}:{attributes or 'NAME'}"
        raise UsageError(
            f"{what} must be module:function, {hint if is_file else 'like networks:small'}, not {reference}"
        )
    return module_name, attributes


def aside() -> AbstractContextManager[Any]:
    """What code of one's own prints goes to stderr: stdout is for results."""
    return redirect_stdout(sys.stderr)


def told(error: BaseException) -> str:
    """An error in code of one's own, in part of a line: its type, its message, and which line of which file."""
    message = " ".join(str(error).split())
    said = f"{type(error).__name__}: {message[:_LONGEST]}" if message else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        said = f"{type(error).__name__}: {error.msg}"
        return f"{said} ({Path(error.filename).name}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(frame.filename)]
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said


def _is_own(filename: str) -> bool:
    """Whether a file is neither Python's, nor an installed package's, nor kdtool's."""
    if filename.startswith("<"):
        return False
    places = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    ours = str(Path(__file__).parents[1])
    return not any(filename.startswith(f"{place}{os.sep}") for place in (*places, ours) if place)


def _module(name: str, asked: str) -> ModuleType:
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        with _current_folder_first(), aside():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):  # a module that it imports is missing
            raise UsageError(f"{asked}: {name} could not be imported: {told(error)}") from error
        raise UsageError(
            f"{asked}: no module '{missing}' in {Path.cwd()} or on Python's path. "
            "Run kdtool where it lies, or put its folder into PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:  # whatever its top level does
        raise UsageError(f"{asked}: {name} could not be imported: {told(error)}") from error


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """A console script's sys.path begins with the script's own folder. Afterwards the current one stays at the end:
    what the module imports later is still found, and no file in it takes the place of a package kdtool needs later."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def _place(found: Any, module_name: str) -> str:
    if isinstance(found, ModuleType):
        return f"{found.__name__} ({getattr(found, '__file__', None) or 'built into Python'})"
    return f"{module_name}:{getattr(found, '__qualname__', type(found).__name__)}"


def _near(name: str, found: Any) -> str:
    """The nearest names to one that is not there, or else what may have been meant."""
    known = [known for known in vars(found) if not known.startswith("_")] if hasattr(found, "__dict__") else []
    near = get_close_matches(name, known, n=3)
    here = getattr(found, "__name__", None)
    defined = [known for known in known if getattr(getattr(found, known), "__module__", None) == here]
    return f": did you mean {' or '.join(near)}?" if near else f"; it defines {', '.join(defined[:8]) or 'nothing'}"
