"""How fast a network trains here: a few steps, for which it is the worse afterwards."""

from __future__ import annotations

import time
from contextlib import closing
from typing import NamedTuple

import torch

from toolkit.training.loop import Trainer

_WARM_STEPS, _MOST_STEPS, _SECONDS = 2, 64, 2.0


class Rate(NamedTuple):
    images_per_s: float
    steps: int


def rate_of(trainer: Trainer) -> Rate:
    """Of steps like the run's own, after two that warm the network up; two seconds of them, and one at least."""
    images, steps, epoch, start_s = 0, 0, 0, time.perf_counter()
    trainer.model.train()
    while True:
        with closing(trainer.source.batches(epoch, 0)) as batches:
            for batch in batches:
                trainer.take_step(batch)
                steps += 1
                if steps > _WARM_STEPS:
                    images += len(batch.labels_b)
                if steps == _WARM_STEPS:
                    _wait(trainer.device)
                    start_s = time.perf_counter()
                elapsed_s = time.perf_counter() - start_s
                if steps > _WARM_STEPS and (steps >= _MOST_STEPS or elapsed_s >= _SECONDS):
                    _wait(trainer.device)
                    return Rate(images / (time.perf_counter() - start_s), steps - _WARM_STEPS)
        epoch += 1


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
