"""What the bounds of verify-cache stand on: how far a teacher's logits move when only the arithmetic changes, and how
far when it sees another view of the same image. Packaged teachers, 512 rows, in shares of the median row's range.

    python -m benchmarks.deviation     # a minute; appends to results/deviation.jsonl and prints
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.machine import RESULTS, append, facts, in_words
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache_request import open_request
from toolkit.report.tables import table
from toolkit.teacher.verify import typical_range

WORKSPACE = Workspace(Path("kdtool-work/benchmarks"))
ROWS, SLOT = 512, 2


def logits(dataset: str, precision: str, batch_size: int, slot: int) -> np.ndarray:
    """(rows, classes) of rows spread over the data."""
    request = open_request(WORKSPACE, dataset, precision=precision, batch_size=batch_size)
    views = request.teacher.reader(request.data.split("train"), request.data.record.plan)
    rows_n = request.rows_n[:: len(request.rows_n) // ROWS][:ROWS]
    return request.teacher.run(views, rows_n, slot)[0].astype(np.float64)


def shares(dataset: str) -> dict[str, tuple[float, float]]:
    """(mean, largest) deviation of each change, as shares of the range."""
    exact = logits(dataset, "float32", 128, SLOT)
    changes = {
        "float32, batches of 37": logits(dataset, "float32", 37, SLOT),
        "bfloat16": logits(dataset, "bfloat16", 128, SLOT),
        "another view": logits(dataset, "float32", 128, SLOT - 1),
    }
    found = {name: np.abs(changed - exact) / typical_range(exact) for name, changed in changes.items()}
    return {name: (float(values.mean()), float(values.max())) for name, values in found.items()}


def main() -> None:
    rows = []
    for dataset in ("digits", "fashion-mnist"):
        found = shares(dataset)
        append(RESULTS / "deviation.jsonl", {"dataset": dataset, "shares": found, "machine": facts()})
        rows += [[f"{dataset}: {name}", f"{mean:.5f}", f"{largest:.4f}"] for name, (mean, largest) in found.items()]
    print(table(["against float32, batches of 128", "mean", "largest"], rows))
    print(f"\n{in_words(facts())}.")


if __name__ == "__main__":
    main()
