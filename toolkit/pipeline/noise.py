"""kdtool noise: a data set with a known share of flipped training labels."""

from __future__ import annotations

from typing import Any

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.progress import Progress, silent
from toolkit.data.noise import check_noise
from toolkit.data.pack import check_limit
from toolkit.formats.dataset import SPLITS, noise_name, noise_of
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed


def noise(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    rate: float,
    dataset: str = defaults.DATASET,
    seed: int = defaults.SEED,
    data_dir: Place | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Flips exactly round(rate · n) training labels of `dataset` and keeps the result as a data set of its own.

    Rows and new labels are chosen uniformly by `seed`; the test split stays as it is. What is there already is checked
    and returned. Raises UsageError or FailureError.
    """
    check_noise(dataset, rate, seed)
    check_limit(dataset, limit)
    name = noise_name(dataset, rate, seed)
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
