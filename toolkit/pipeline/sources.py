"""Which source feeds a network: one that holds everything on the device, or one that streams from disk through FFCV.

Their batches are the same, bit for bit, so it is a matter of memory alone, and a run may be resumed from the other one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from toolkit.core import defaults
from toolkit.core.device import free_memory_bytes
from toolkit.core.errors import UsageError, unknown_name
from toolkit.core.memory import left_bytes, need
from toolkit.core.processes import parts_fit
from toolkit.formats.beton import Beton
from toolkit.formats.dataset import DataRecord
from toolkit.formats.views_of import ViewReader
from toolkit.models.heads import asked
from toolkit.pipeline.runtime import Compute
from toolkit.training.resident import ResidentSource
from toolkit.training.stream import StreamSource
from toolkit.training.targets import Targets
from toolkit.views.plan import Plan

SOURCES = ("auto", "resident", "stream")
OWN_BYTES = 64  # a row: of our own arrays, at most
FFCV_BYTES = 192  # a row: of its records, tables and orders
_BATCHES = 12  # read, decoded and drawn ahead of the step, or in it
_CHANNELS = 3  # of a byte each
_COPIES = 2  # of what a resident source holds: frames are held twice while their border is drawn
_SHARE = 1 / _COPIES  # of what is free


def open_source(
    images: Beton,
    indices_m: np.ndarray,
    data: DataRecord,
    batch_size: int,
    seed: int,
    compute: Compute,
    targets: Targets | None = None,
    kind: str = defaults.SOURCE,
    weights_m: np.ndarray | None = None,
) -> ResidentSource | StreamSource:
    """Batches of the rows of `images` at `indices_m`, shown as the data's plan says; with `weights_m`, weighted.

    Of several processes each is given its share of every batch. `kind` is one of SOURCES: auto is resident where images
    and targets fit in half of the device's free memory, and of what --memory-limit leaves; processes of one machine
    share its own. Raises UsageError for another, for resized crops that should be resident, and for batches with fewer
    rows than processes; FailureError for what --memory-limit leaves no room for.
    """
    check_source(kind, data.plan)
    needed = resident_bytes(len(indices_m), data, targets)
    if kind == "auto":
        places = {compute.device, torch.device("cpu")}  # everything passes through the host
        fits = data.plan.finite and all(needed <= _SHARE * _own_bytes(place, compute) for place in places)
        kind = "resident" if fits else "stream"
    common = (data.plan, data.mean, data.std, batch_size, seed, compute.device, compute.dtype, targets)
    part = (compute.processes.rank, compute.processes.count)
    parts_fit(len(indices_m), batch_size, compute.processes)
    sharing = compute.processes.local_count
    if kind == "stream":
        held = stream_bytes(len(indices_m), batch_size, data)
        need(held, f"streaming {len(indices_m):,} rows", "Give it more", sharing)
        return StreamSource(images, indices_m, *common, workers=compute.threads, weights_n=weights_m, part=part)
    what = f"--source resident, of {len(indices_m):,} rows,"
    need(_COPIES * needed, what, "Use --source stream, or give it more", sharing)
    views = ViewReader(images, data.plan, batch_size, compute.device, compute.threads)
    records = images.records_n[indices_m]
    labels_m, rows_m = records["label"], records["row"]
    return ResidentSource(views.frames(indices_m), labels_m, rows_m, *common, weights_n=weights_m, part=part)


def check_source(kind: str, plan: Plan | None = None) -> None:
    """Raises UsageError for a source that does not exist, or not for views of this plan."""
    if kind not in SOURCES:
        raise unknown_name("source", kind, list(SOURCES))
    if kind == "resident" and plan is not None and not plan.finite:
        raise UsageError(f"--source resident: views of {plan.family} are cut by FFCV's decoder. Use --source stream")


def check_single_rows(model: nn.Module, rows: int, batch_size: int, data: DataRecord, count: int) -> None:
    """Raises UsageError where one of `count` processes gets a single row in some batch, and this network, placed, can't
    train on one: batch normalisation of a single number has no deviation."""
    if not _single_rows(rows, batch_size, count):
        return
    parameter = next(model.parameters())
    x_bchw = torch.zeros((1, 3, data.plan.height, data.plan.width), device=parameter.device, dtype=parameter.dtype)
    try:
        with asked(model, training=True):
            model(x_bchw)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        fit = next((size for size in range(batch_size + 1, rows) if not _single_rows(rows, size, count)), rows)
        one = "one row" if count == 1 else "one row in a process"
        raise UsageError(
            f"--batch-size {batch_size}: of {rows:,} rows it makes a batch of {one}, which this network's batch "
            f"normalisation can't take. Use --batch-size {fit}"
        ) from error


def _single_rows(rows: int, batch_size: int, count: int) -> bool:
    """Whether a batch, whole or the last one, gives a process a single row: the last of those that get any."""
    return min(rows, batch_size, rows % batch_size or batch_size) < 2 * count


def resident_bytes(rows: int, data: DataRecord, targets: Targets | None) -> int:
    """What the resident source holds: frames with their border, and targets."""
    border = 2 * (data.plan.padding or 0)
    pixels = (data.plan.height + border) * (data.plan.width + border)
    return rows * pixels * _CHANNELS + (targets.bytes if targets is not None else 0)


def stream_bytes(rows: int, batch_size: int, data: DataRecord) -> int:
    """What the streaming source holds: tables of its rows, and batches."""
    return rows * (OWN_BYTES + FFCV_BYTES) + _BATCHES * batch_size * data.plan.height * data.plan.width * _CHANNELS


def least_bytes(rows: int, batch_size: int, data: DataRecord, targets: Targets | None) -> dict[str, int]:
    """What `open_source` needs at least for each kind of source."""
    resident, stream = _COPIES * resident_bytes(rows, data, targets), stream_bytes(rows, batch_size, data)
    return {"auto": min(resident, stream) if data.plan.finite else stream, "resident": resident, "stream": stream}


def _own_bytes(place: torch.device, compute: Compute) -> int:
    """Several processes of one machine share its memory; GPUs they don't."""
    if place.type != "cpu":
        return free_bytes(place)
    sharing = compute.processes.local_count
    return min(free_bytes(place) // sharing, left_bytes(sharing))


def free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()
