"""What train-teacher records beside the weights: the dynamics of one training or several.

Shapes: m rows trained on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.core.errors import UsageError
from toolkit.core.progress import Progress
from toolkit.core.versions import command_line, now, versions
from toolkit.formats.beton import Beton
from toolkit.formats.bundle import rows_fingerprint
from toolkit.formats.cache_writing import new_blocks
from toolkit.formats.dataset import DataRecord
from toolkit.formats.dynamics import DYNAMICS_SCHEMA, DynamicsRecord
from toolkit.formats.parts import Parts
from toolkit.models.zoo import FeatureReader
from toolkit.pipeline.runtime import Compute
from toolkit.teacher.caching import TeacherPass
from toolkit.teacher.dynamics import Recorder, join_dynamics
from toolkit.training.evaluate import EVAL_BATCH


def check_recording(dynamics: bool, seeds: int, snapshots: str | None, epochs: int) -> list[int]:
    """The epochs, increasing, after which logits and features of all rows are kept. Raises UsageError for what can't be
    recorded, or not without dynamics."""
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    if not dynamics and (seeds > 1 or snapshots is not None):
        asked = f"--seeds {seeds}" if seeds > 1 else f"--snapshots {snapshots}"
        raise UsageError(f"{asked} is for the dynamics alone: leave out --no-dynamics")
    if snapshots is None:
        return []
    words = [word.strip() for word in snapshots.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"--snapshots must be epochs like 2,10, got '{snapshots}'")
    found = sorted({int(word) for word in words})
    if found[0] == 0:
        raise UsageError(
            "--snapshots 0: scores of a network that has learned nothing do not reproduce (arXiv 2303.14753). "
            "Use an early epoch, like 2"
        )
    if found[-1] > epochs:
        raise UsageError(f"--snapshots {snapshots}: the training has {epochs} epochs. Name earlier ones")
    return found


@dataclass(frozen=True)
class Recording:
    """The dynamics of trainings on the rows of `train` at `rows_m`, epoch by epoch in `parts` until all have ended."""

    parts: Parts
    snapshots: list[int]
    data: DataRecord
    train: Beton
    rows_m: np.ndarray
    compute: Compute

    def recorder(self, seed_index: int, model: torch.nn.Module, compiled: bool, progress: Progress) -> Recorder:
        rows_n, classes, device = self.train.rows_n[self.rows_m], self.data.classes, self.compute.device
        seeing = TeacherPass(
            FeatureReader(model),
            self.data.mean,
            self.data.std,
            device,
            self.compute.dtype,
            self.compute.precision,
            EVAL_BATCH,
            self.compute.threads,
        )
        views = seeing.reader(self.train, self.data.plan)

        def look(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return seeing.run(views, self.rows_m[positions], 0)

        how = (self.snapshots, look, not compiled, progress, self.compute.processes)
        return Recorder(model, rows_n, classes, device, self.parts, seed_index, *how)

    def join(
        self, path: Path, settings: dict[str, Any], teacher: str, teacher_fingerprint: str, top1s: list[float]
    ) -> None:
        """Writes dynamics.h5 at `path` of trainings that have all ended."""
        rows_n, seeds, epochs = self.train.rows_n[self.rows_m], len(top1s), settings["epochs"]
        record = DynamicsRecord(
            dataset=self.data.dataset,
            data_fingerprint=self.data.train_fingerprint,
            rows_fingerprint=rows_fingerprint(rows_n),
            limit=self.data.limit,
            teacher=teacher,
            teacher_fingerprint=teacher_fingerprint,
            arch=settings["arch"],
            classes=self.data.classes,
            seeds=[settings["seed"] + index for index in range(seeds)],
            top1s=top1s,
            epochs=epochs,
            snapshots=self.snapshots,
            settings=settings,
            command=command_line(),
            created=now(),
            versions=versions(),
        )
        with new_blocks(path, DYNAMICS_SCHEMA, asdict(record)) as out:
            join_dynamics(out, self.parts, rows_n, self.train.labels_n[self.rows_m], seeds, epochs, self.snapshots)
