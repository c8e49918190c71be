"""The runs of a sweep: every cell resolved to the settings that decide its weights, and where such a run lies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import FailureError
from toolkit.core.files import read_json
from toolkit.core.hashing import fingerprint
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.checkpoint import load_torch
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.alpha_search import images_of
from toolkit.pipeline.knowledge import Knowledge, load_knowledge
from toolkit.pipeline.run_folder import SEARCH, earlier_result
from toolkit.pipeline.runtime import Compute
from toolkit.pipeline.sources import least_bytes
from toolkit.pipeline.student_request import open_student_request
from toolkit.pipeline.sweep.request import Cell, Sweep
from toolkit.training.run import CHECKPOINT, differing


@dataclass(frozen=True)
class Run:
    """One student to train, and all the cells that it is. `key` is of its `settings`; `asked` are distill's keywords,
    `name` its default name, `images` how many it is shown, and `least_bytes` what it holds at least, by its source."""

    key: str
    name: str
    settings: dict[str, Any]
    asked: dict[str, Any]
    images: int
    cells: tuple[Cell, ...]
    least_bytes: dict[str, int] = field(default_factory=dict)


def key_of(settings: dict[str, Any]) -> str:
    """What tells one run from another: a fingerprint of everything that decides its weights."""
    return fingerprint(json.dumps(settings, sort_keys=True))


def resolve(
    workspace: Workspace,
    sweep: Sweep,
    compute: Compute,
    asked: Mapping[Cell, dict[str, Any]],
) -> tuple[list[Run], dict[Cell, str]]:
    """The distinct runs of cells, by what each asks of distill, in the order of their first cells; and those whose
    bundle or targets cannot be opened, with the reason. Raises UsageError where a cell was asked for what cannot be."""
    memory, found, unfit = _Memory(), dict[str, Run](), dict[Cell, str]()
    for cell, keywords in asked.items():
        try:
            request = open_student_request(
                workspace,
                compute,
                compiled=sweep.compile,
                open_bundle=memory.bundle,
                load_knowledge=memory.knowledge,
                **keywords,
            )
        except FailureError as error:
            unfit[cell] = str(error)
            continue
        key = key_of(request.settings)
        cells = (*(found[key].cells if key in found else ()), cell)
        rows, data, knowledge = request.bundle.record.rows, request.bundle.data, request.knowledge
        least = least_bytes(rows, request.recipe.batch_size, data, knowledge.targets if knowledge else None)
        found[key] = Run(key, request.name, request.settings, keywords, images_of(request), cells, least)
    return list(found.values()), unfit


def finished(workspace: Workspace, run: Run) -> tuple[str, dict[str, Any] | None]:
    """(name, result) of the run: the result is None where it has not ended, and then it is to be trained in the folder
    of that name. That is its default name; where that is taken by a run of other settings, the key is added."""
    for name in (run.name, f"{run.name}-{run.key[:8]}"):
        folder = workspace.run(name)
        if (folder / "run.json").is_file():
            try:
                return name, earlier_result(folder / "run.json", run.settings, force=False)
            except FailureError:  # of other settings, or damaged
                continue
        if not _begun_otherwise(folder, run.settings):
            return name, None
    return name, None  # whoever trains there is told what is wrong with it


def _begun_otherwise(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a run with other settings has begun there: its training, or its search for an alpha."""
    begun = {CHECKPOINT: load_torch, SEARCH: read_json}
    for name, read in begun.items():
        if (folder / name).is_file():
            try:
                saved = read(folder / name, "the same sweep again").get("settings")
            except FailureError:
                return True
            if not isinstance(saved, dict) or differing(saved, settings):
                return True
    return False


class _Memory:
    """Bundles and targets opened once each: many students share them."""

    def __init__(self) -> None:
        self._bundles: dict[Path, Bundle] = {}
        self._knowledge: dict[tuple[Any, ...], Knowledge] = {}

    def bundle(self, folder: Path) -> Bundle:
        if folder not in self._bundles:
            self._bundles[folder] = open_bundle(folder)
        return self._bundles[folder]

    def knowledge(self, bundle: Bundle, teacher: str | None, match: str, views: int | None) -> Knowledge:
        asked = (bundle.folder, teacher, match, views)
        if asked not in self._knowledge:
            self._knowledge[asked] = load_knowledge(bundle, teacher, match, views)
        return self._knowledge[asked]
