"""dynamics.h5: how a teacher's training went, for every row, epoch and seed.

    /rows (n,) int64, /labels (n,) int64
    /seeds/<i>/epochs/<e>/<name> (n,)     i counts the seeds from 0, e the epochs from 1; see SERIES
    /seeds/<i>/snapshots/<e>/logits       (n, c) float16, of the canonical view, by the weights after epoch e
    /seeds/<i>/snapshots/<e>/features     (n, d) float16, likewise: what the last linear layer read
    /checksums/<dataset>                  CRC-32 of every block of rows, uint32

Epochs hold what the training forward said, in passing, of the view that it was shown: weights move within an epoch.
Shapes: n rows, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.formats.blocks import BlockReader, check_shapes, opened, record_in

DYNAMICS_SCHEMA = "kdtool dynamics 1"

# What is recorded of each row in each epoch, with its type. p is the softmax at temperature 1, y the one-hot label.
SERIES: dict[str, np.dtype] = {
    "correct": np.dtype(np.uint8),  # 1 where the largest logit is the label's
    "loss": np.dtype(np.float32),  # −log p_y, in nats: p_y is exp(−loss)
    "el2n": np.dtype(np.float32),  # ‖p − y‖₂
    "logit_true": np.dtype(np.float32),  # the label's logit
    "logit_other": np.dtype(np.float32),  # the largest of all others
    "kl": np.dtype(np.float32),  # KL(p now ‖ p in the epoch before), in nats; NaN in the first
}
SNAPSHOT = ("logits", "features")


@dataclass(frozen=True)
class DynamicsRecord:
    """What dynamics.h5 was recorded from. `seeds` are the trainings', `top1s` what each reached on the test split, in
    percent, in its last epoch; `teacher_fingerprint` is of teacher.pt, which the first seed made."""

    dataset: str
    data_fingerprint: str
    rows_fingerprint: str
    limit: int | None
    teacher: str
    teacher_fingerprint: str
    arch: str
    classes: int
    seeds: list[int]
    top1s: list[float]
    epochs: int
    snapshots: list[int]
    settings: dict[str, Any]
    command: str
    created: str
    versions: dict[str, str]


class DynamicsReader(BlockReader):
    """An opened dynamics.h5. Seeds count from 0, in the order of `record.seeds`; epochs from 1."""

    def __init__(self, file: h5py.File, path: Path, record: DynamicsRecord, made_by: str) -> None:
        super().__init__(file, path, made_by)
        self.record = record

    @property
    def rows_n(self) -> np.ndarray:
        return self.read("rows")

    @property
    def labels_n(self) -> np.ndarray:
        return self.read("labels")

    def epoch(self, name: str, seed_index: int, epoch: int) -> np.ndarray:
        """One of SERIES in one epoch: (n,) float32, or bool for `correct`."""
        values_n = self.read(f"seeds/{seed_index}/epochs/{epoch}/{name}")
        return values_n.astype(bool) if name == "correct" else values_n

    def series(self, name: str, seed_index: int) -> np.ndarray:
        """One of SERIES in every epoch: (epochs, n)."""
        return np.stack([self.epoch(name, seed_index, epoch) for epoch in range(1, self.record.epochs + 1)])

    def snapshot(self, name: str, seed_index: int, epoch: int) -> np.ndarray:
        """`logits` (n, c) or `features` (n, d), float16, by the weights after `epoch`, which is one of the record's."""
        return self.read(f"seeds/{seed_index}/snapshots/{epoch}/{name}")

    def fingerprint(self) -> str:
        """16 hexadecimal digits over the checksums of all that was recorded."""
        return self.contents_fingerprint(*sorted(self.dataset_names()))


def dynamics_command(record: DynamicsRecord) -> str:
    """The command that records them again."""
    said = {
        "dataset": record.dataset,
        "limit": record.limit,
        "arch": record.arch,
        "width": record.settings.get("width"),
        "subset": record.settings.get("subset"),
        "recipe": record.settings.get("recipe"),
        "epochs": record.epochs,
        "batch-size": record.settings.get("batch_size"),
        "lr": record.settings.get("lr"),
        "seed": record.seeds[0],
        "seeds": len(record.seeds),
        "snapshots": ",".join(map(str, record.snapshots)) or None,
        "name": record.teacher,
    }
    options = [f"--{name} {value}" for name, value in said.items() if value is not None]
    return " ".join(["kdtool train-teacher", *options, "--force"])


def _checked_record(file: h5py.File) -> DynamicsRecord:
    """Raises ValueError when it is not there, not of this schema, or does not describe the datasets in the file."""
    record = record_in(file, DYNAMICS_SCHEMA, DynamicsRecord)
    rows = len(file["rows"]) if "rows" in file else -1
    shapes: dict[str, tuple[int, ...]] = {"rows": (rows,), "labels": (rows,)}
    for index in range(len(record.seeds)):
        for epoch in range(1, record.epochs + 1):
            shapes |= {f"seeds/{index}/epochs/{epoch}/{name}": (rows,) for name in SERIES}
        shapes |= {f"seeds/{index}/snapshots/{epoch}/logits": (rows, record.classes) for epoch in record.snapshots}
    check_shapes(file, shapes)
    snapshots = [f"seeds/{index}/snapshots/{epoch}" for index in range(len(record.seeds)) for epoch in record.snapshots]
    for name in (f"{place}/features" for place in snapshots):
        shape = file[name].shape if name in file else ()
        if len(shape) != 2 or shape[:1] != (rows,):
            raise ValueError(f"/{name} is missing, or not of {rows} rows")
    for name, kind in SERIES.items():
        found = {file[f"seeds/{index}/epochs/1/{name}"].dtype for index in range(len(record.seeds))}
        if found != {kind}:
            raise ValueError(f"/seeds/…/epochs/…/{name} are {', '.join(map(str, found))}, not {kind}")
    return record


@contextmanager
def open_dynamics(
    path: Path, made_by: str = "kdtool train-teacher --force, with its settings"
) -> Iterator[DynamicsReader]:
    """Raises FailureError (what, found, what next) when `path` is missing, truncated, or no dynamics of this schema."""
    with opened(path, made_by, "dynamics", _checked_record) as (file, record):
        yield DynamicsReader(file, path, record, dynamics_command(record))
