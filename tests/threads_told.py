"""What torchrun starts for test_threads.py: how many threads and workers a process takes on a machine of 8 CPUs.

    torchrun … -m tests.threads_told FOLDER-OF-PACKED-DATA

Prints one line of JSON for each process.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from toolkit.core.processes import Processes, joined
from toolkit.formats.dataset import open_packed
from toolkit.pipeline.runtime import compute_on
from toolkit.pipeline.sources import open_source

# what a launcher or a user may say in OMP_NUM_THREADS
SAID = {"by torchrun": os.environ.get("OMP_NUM_THREADS"), "by nobody": None, "by the user": "3"}


def threads(said: str | None, processes: Processes) -> int:
    os.environ.pop("OMP_NUM_THREADS", None)
    if said is not None:
        os.environ["OMP_NUM_THREADS"] = said
    return compute_on("cpu", "float32", None, processes).threads


def workers(folder: Path, processes: Processes) -> int:
    """Of FFCV's loader, where a student streams."""
    data, compute = open_packed(folder), compute_on("cpu", "float32", None, processes)
    images, rows = data.split("train"), np.arange(16)
    return int(open_source(images, rows, data.record, 4, 0, compute, None, "stream").loader.num_workers)


if __name__ == "__main__":
    os.sched_getaffinity = lambda process: set(range(8))  # before Numba counts them
    with joined() as processes:
        found = {"workers": workers(Path(sys.argv[1]), processes)}
        found |= {name: threads(said, processes) for name, said in SAID.items() if name != "by the user"}
        import torch

        torch.set_num_threads(3)  # as torch would have begun with it
        found["by the user"] = threads(SAID["by the user"], processes)
        processes.barrier()
        print(json.dumps({"rank": processes.rank, **found}) + "\n", end="", flush=True)
