"""Predicting whole splits on their canonical view (view 0), or on other middle squares.

Shapes: n rows, b batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.device import autocast
from toolkit.core.progress import Progress, silent
from toolkit.formats.beton import Beton
from toolkit.formats.views_of import ViewReader
from toolkit.models.zoo import FeatureReader
from toolkit.views.families import middle_squares
from toolkit.views.plan import Plan
from toolkit.views.render import normalise

EVAL_BATCH = 256


def predict(
    model: nn.Module,
    images: Beton,
    plan: Plan,
    mean: list[float],
    std: list[float],
    device: torch.device,
    precision: str,
    positions_n: np.ndarray | None = None,
    crop: float | None = None,
    progress: Progress = silent,
) -> Tensor:
    """The class with the largest logit for each image, or for those at `positions_n`: (n,) int64 on the CPU.

    Of resized crops `crop` is the share of the shorter side that is looked at (default: view 0's, seven eighths), and
    `plan` may be of another size than the data's.

    Logits are the float32 ones of FeatureReader: rounded to bfloat16 they would tie, and ties go to the lower class.
    """
    positions_n = np.arange(len(images)) if positions_n is None else positions_n
    dtype = next(model.parameters()).dtype
    mean_c, std_c = (torch.tensor(values, dtype=dtype, device=device) for values in (mean, std))
    read = FeatureReader(model.eval())
    views = ViewReader(images, plan, EVAL_BATCH, device, workers=torch.get_num_threads())
    if crop is None:
        shown = views.slot(positions_n, 0)
    else:
        shown = views.boxed(positions_n, middle_squares(images.sizes_n2[positions_n], crop))
    looked = progress("evaluate", len(positions_n), "img")
    with torch.inference_mode(), autocast(device, precision), looked as tick:
        predicted_n, at = torch.empty(len(positions_n), dtype=torch.int64, device=device), 0
        for images_bhwc in shown:
            end = at + len(images_bhwc)
            predicted_n[at:end] = read(normalise(images_bhwc, mean_c, std_c))[1].argmax(dim=1)
            tick(end - at)
            at = end
    return predicted_n.cpu()


def top1(predicted_n: Tensor, labels_n: np.ndarray) -> float:
    """The share of correct predictions, in percent."""
    return 100.0 * float((predicted_n.numpy() == labels_n).mean())
