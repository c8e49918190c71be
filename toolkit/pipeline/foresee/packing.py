"""pack with --dry-run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.core.progress import Progress
from toolkit.data.folder_plan import FolderPlan
from toolkit.formats.beton import file_bytes
from toolkit.formats.dataset import without_noise
from toolkit.pipeline.foresee.foreseen import Foreseen, refuse_download


def foreseen_pack(
    path: Path,
    dataset: str,
    data_dir: Path | None,
    limit: int | None,
    workers: int,
    progress: Progress,
    plan: FolderPlan | None = None,
) -> dict[str, Any]:
    """By packing some rows into a temporary folder; `plan` is an image folder's."""
    refuse_download(dataset, limit, data_dir)
    base = without_noise(dataset)
    from toolkit.data.trial import try_arrays, try_folder

    with TemporaryDirectory(prefix="kdtool-dry-run-") as name:
        folder = Path(name)
        if plan is None:
            trial = try_arrays(base, folder, data_dir, limit, workers, progress)
        else:
            trial = try_folder(plan, folder, workers)
    rows = sum(trial.rows.values())
    seconds = trial.read_s + rows / trial.rows_per_s
    basis = f"{trial.tried:,} images packed here: {trial.rows_per_s:,.0f} img/s, with {workers} workers"
    more = {"dataset": dataset, "train_rows": trial.rows["train"], "test_rows": trial.rows["test"]}
    size = sum(file_bytes(count, trial.bytes_per_row) for count in trial.rows.values())
    return Foreseen(path, False, size, seconds / 60, basis, more=more).told()
