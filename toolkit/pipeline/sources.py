"""Which source feeds a network: the resident one where views are drawn in torch, the streaming one where FFCV draws."""

from __future__ import annotations

import numpy as np

from toolkit.formats.beton import Beton
from toolkit.formats.dataset import DataRecord
from toolkit.pipeline.runtime import Compute
from toolkit.training.resident import ResidentSource
from toolkit.training.stream import StreamSource
from toolkit.training.targets import Targets


def open_source(
    images: Beton,
    indices_m: np.ndarray,
    data: DataRecord,
    batch_size: int,
    seed: int,
    compute: Compute,
    targets: Targets | None = None,
) -> ResidentSource | StreamSource:
    """Batches of the rows of `images` at `indices_m`, shown as the data's plan says."""
    common = (data.plan, data.mean, data.std, batch_size, seed, compute.device, compute.dtype, targets)
    if data.plan.finite:
        frames, records = images.frames(indices_m), images.records_n[indices_m]
        return ResidentSource(frames, records["label"], records["row"], *common)
    return StreamSource(images, indices_m, *common, workers=compute.threads)
