"""kdtool pack: a data set, decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.core.locks import only_writer
from toolkit.core.progress import Progress, silent
from toolkit.data.pack import pack
from toolkit.data.sources import source_named
from toolkit.formats.dataset import PackedData, data_key, open_packed, write_record
from toolkit.formats.workspace import Workspace


def pack_data(
    workspace: Workspace,
    dataset: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    workers: int = 2,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Packs `dataset` into the workspace, unless it is there already. Raises UsageError or FailureError."""
    packed = ensure_packed(workspace, dataset, data_dir, limit, force, workers, progress)
    record = packed.record
    return {
        "path": str(packed.folder),
        "dataset": record.dataset,
        "train_rows": record.train_rows,
        "test_rows": record.test_rows,
        "classes": record.classes,
        "fingerprint": record.train_fingerprint,
    }


def ensure_packed(
    workspace: Workspace,
    dataset: str,
    data_dir: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    workers: int = 2,
    progress: Progress = silent,
) -> PackedData:
    """The packed data, made now if they are missing (or `force`)."""
    source_named(dataset)
    folder = workspace.data(data_key(dataset, limit))
    record = folder / "data.json"
    if force or not record.is_file():
        with only_writer(record):
            record.unlink(missing_ok=True)  # a killed pack must not leave an old record beside new pixels
            write_record(folder, pack(dataset, folder, data_dir, limit, workers, progress))
    return open_packed(folder)
