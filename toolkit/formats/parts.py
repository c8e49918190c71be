"""Long work in parts: each a whole file, with boundaries fixed by row, so a killed run loses one part at most."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, remove_folder, whole_file, whole_folder, write_json


class Parts:
    """The parts of one piece of work, in a folder of their own. `identity` says what they are parts of."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Raises FailureError, naming what differs, when the folder holds parts of other work."""
        self.folder, self._identity = folder, identity
        identity = json.loads(json.dumps(identity))  # as it will be read back
        if folder.is_dir():
            found = read_json(folder / "identity.json", "the same command with --force")
            names = [name for name in {**found, **identity} if found.get(name) != identity.get(name)]
            if names:
                differences = ", ".join(f"{name} was {found.get(name)}, now {identity.get(name)}" for name in names)
                raise FailureError(
                    f"{folder}: unfinished work of another kind ({differences}). "
                    "Repeat the command that began it, or pass --force to throw it away"
                )

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def save(self, key: str, **arrays: np.ndarray) -> None:
        """The folder appears with its first part, so that work which fails before leaves nothing."""
        if self.folder.is_dir():
            _write(self._path(key), arrays)
            return
        with whole_folder(self.folder) as temporary:
            write_json(temporary / "identity.json", self._identity)
            _write(temporary / self._path(key).name, arrays)

    def begin(self) -> None:
        """Makes the folder at once, for several processes to save parts in."""
        if not self.folder.is_dir():
            with whole_folder(self.folder) as temporary:
                write_json(temporary / "identity.json", self._identity)

    def load(self, key: str, name: str) -> np.ndarray:
        try:
            with self._path(key).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise FailureError(
                f"{self._path(key)}: damaged ({error}). Delete it and run the same command again"
            ) from error

    def discard(self) -> None:
        """Does nothing when no part was saved."""
        remove_folder(self.folder)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
