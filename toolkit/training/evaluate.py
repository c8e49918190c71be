"""Predicting whole splits on their canonical view (view 0).

Shapes: n rows, b batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from toolkit.core.device import autocast
from toolkit.models.zoo import FeatureReader
from toolkit.views.render import normalise

EVAL_BATCH = 256


def canonical_batches(
    images_nhwc: np.ndarray, mean: list[float], std: list[float], device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Normalised batches (b, 3, h, w) of the images as they are, in row order."""
    mean_c = torch.tensor(mean, dtype=dtype, device=device)
    std_c = torch.tensor(std, dtype=dtype, device=device)
    for start in range(0, len(images_nhwc), EVAL_BATCH):
        batch = torch.from_numpy(images_nhwc[start : start + EVAL_BATCH]).to(device)
        yield normalise(batch, mean_c, std_c)


def predict(
    model: nn.Module,
    images_nhwc: np.ndarray,
    mean: list[float],
    std: list[float],
    device: torch.device,
    precision: str,
) -> Tensor:
    """The class with the largest logit for each image: (n,) int64 on the CPU.

    Logits are the float32 ones of FeatureReader: rounded to bfloat16 they would tie, and ties go to the lower class.
    """
    dtype = next(model.parameters()).dtype
    read = FeatureReader(model.eval())
    with torch.inference_mode(), autocast(device, precision):
        batches = canonical_batches(images_nhwc, mean, std, device, dtype)
        return torch.cat([read(x_bchw)[1].argmax(dim=1) for x_bchw in batches]).cpu()


def top1(predicted_n: Tensor, labels_n: np.ndarray) -> float:
    """The share of correct predictions, in percent."""
    return 100.0 * float((predicted_n.numpy() == labels_n).mean())
