"""Where artifacts lie: fixed names under one folder, so that commands find each other's work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.core.asked import Place
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import read_json

IMPORTED_SCORES = "the imported scores"  # whose a score is that came from outside: no teacher's
_NAME_BYTES = 200  # a file system's 255, less what the temporary and the lock file add


def checked_name(name: str, option: str = "--name") -> str:
    """A name that is one plain folder. Raises UsageError for path separators, blanks at either end, or nothing."""
    if name != name.strip() or not name or name.startswith((".", "-")) or any(sign in name for sign in "/\\\0\n"):
        raise UsageError(f"{option} must be a plain folder name without slashes, got '{name}'")
    if len(name.encode()) > _NAME_BYTES:
        raise UsageError(f"{option} must be at most {_NAME_BYTES} bytes long, got {len(name.encode())}")
    return name


@dataclass(frozen=True)
class Workspace:
    root: Path

    @classmethod
    def at(cls, place: Workspace | Place) -> Workspace:
        """The workspace in this folder, or the one given."""
        return place if isinstance(place, Workspace) else cls(Path(place))

    def data(self, key: str) -> Path:
        return self.root / "data" / key

    def teacher(self, name: str) -> Path:
        return self.root / "teachers" / checked_name(name, "--teacher")

    def cache(self, teacher: str, limit: int | None) -> Path:
        """The teacher's cache; data cut by --limit have a cache of their own."""
        return self.teacher(teacher) / ("cache.h5" if limit is None else f"cache-limit-{limit}.h5")

    def subset(self, name: str) -> Path:
        """A bundle's folder, by name or, where `name` is a folder with a subset.json, by path."""
        if (Path(name) / "subset.json").is_file():
            return Path(name)
        return self.root / "subsets" / checked_name(name, "--subset")

    def run(self, name: str) -> Path:
        return self.root / "runs" / checked_name(name)

    def newest_subset(self) -> Path:
        """The bundle written last, by the time in its record; of those of one second, by their files'. Raises
        FailureError when there is none."""
        records = sorted(self.root.glob("subsets/*/subset.json"))
        if not records:
            raise FailureError(f"{self.root / 'subsets'}: no subset yet. Run: kdtool build-subset --frac 0.5")

        def written(path: Path) -> tuple[str, int]:
            return read_json(path, "kdtool build-subset").get("created", ""), path.stat().st_mtime_ns

        return max(records, key=written).parent
