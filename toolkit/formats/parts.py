"""Long work in parts: each a whole file, with boundaries fixed by row, so a killed run loses one part at most."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json, whole_file, write_json


class Parts:
    """The parts of one piece of work, in a folder of their own. `identity` says what they are parts of."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """Raises FailureError, naming what differs, when the folder holds parts of other work."""
        self.folder = folder
        identity = json.loads(json.dumps(identity))  # as it will be read back
        path = folder / "identity.json"
        if path.is_file():
            found = read_json(path, "the same command with --force")
            names = [name for name in {**found, **identity} if found.get(name) != identity.get(name)]
            if names:
                differences = ", ".join(f"{name} was {found.get(name)}, now {identity.get(name)}" for name in names)
                raise FailureError(
                    f"{folder}: unfinished work of another kind ({differences}). "
                    "Repeat the command that began it, or pass --force to throw it away"
                )
        else:
            write_json(path, identity)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def save(self, key: str, **arrays: np.ndarray) -> None:
        with whole_file(self._path(key)) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, key: str, name: str) -> np.ndarray:
        try:
            with np.load(self._path(key), allow_pickle=False) as arrays:
                return arrays[name]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise FailureError(
                f"{self._path(key)}: damaged ({error}). Delete it and run the same command again"
            ) from error

    def discard(self) -> None:
        shutil.rmtree(self.folder)
