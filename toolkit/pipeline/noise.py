"""kdtool noise: a data set with a known share of flipped training labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.progress import Progress, silent
from toolkit.core.sizes import in_words
from toolkit.data.noise import check_noise, noise_in
from toolkit.data.pack import check_limit
from toolkit.formats.dataset import SPLITS, data_key, noise_name, noise_of
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.foresee.foreseen import Foreseen, already_there, on_packed
from toolkit.pipeline.foresee.trials import copied_bytes_per_s


def noise(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    rate: float,
    dataset: str = defaults.DATASET,
    seed: int = defaults.SEED,
    data_dir: Place | None = None,
    limit: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Flips exactly round(rate · n) training labels of `dataset` and keeps the result as a data set of its own.

    Rows and new labels are chosen uniformly by `seed`; the test split stays as it is. What is there already is checked
    and returned. With `dry_run` nothing is written: the result is `Foreseen.told`. Raises UsageError or FailureError.
    """
    check_noise(dataset, rate, seed)
    check_limit(dataset, limit)
    name = noise_name(dataset, rate, seed)
    if dry_run:
        return _foreseen(Workspace.at(workspace), name, dataset, rate, seed, as_path(data_dir), limit, force, progress)
    packed = ensure_packed(Workspace.at(workspace), name, as_path(data_dir), limit, force, progress=progress)
    for split in SPLITS:
        packed.split(split)  # what was there already is looked at before it is said to be there
    made, record = noise_of(packed.folder), packed.record
    assert made is not None  # by its name
    return {
        "path": str(packed.folder),
        "dataset": record.dataset,
        "of": made.of,
        "rate": made.rate,
        "seed": made.seed,
        "limit": record.limit,
        "train_rows": record.train_rows,
        "flipped": len(made.rows_m),
        "classes": record.classes,
        "fingerprint": record.train_fingerprint,
    }


def _foreseen(
    workspace: Workspace,
    name: str,
    dataset: str,
    rate: float,
    seed: int,
    data_dir: Path | None,
    limit: int | None,
    force: bool,
    progress: Progress,
) -> dict[str, Any]:
    folder = workspace.data(data_key(name, limit))
    if (folder / "data.json").is_file() and not force:
        return already_there(folder)

    def look(there: Workspace) -> dict[str, Any]:
        base = ensure_packed(there, dataset, data_dir, limit, progress=progress)
        flipped = len(noise_in(base, rate, seed).rows_m)
        paths = [base.split(split).path for split in SPLITS]
        size, speed = sum(path.stat().st_size for path in paths), copied_bytes_per_s(paths[0])
        more = {"dataset": name, "train_rows": base.record.train_rows, "flipped": flipped}
        basis = f"{in_words(speed)} a second copied here"
        return Foreseen(folder, False, size, size / speed / 60, basis, more=more).told()

    return on_packed(workspace, look, dataset, limit, data_dir, progress=progress)
