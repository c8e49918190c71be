"""The loop: forward, backward, step. It reads from top to bottom and never waits for the device within an epoch.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toolkit.core.device import autocast
from toolkit.core.errors import FailureError
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import Recipe, lr_at
from toolkit.training.compile import Forward, compiled_forward
from toolkit.training.showing import Batch

Loss = Callable[[Tensor, Batch], Tensor]
Observe = Callable[[Tensor, Batch], None]


class Source(Protocol):
    """What the loop trains on: ResidentSource or StreamSource. Every batch but the last has `batch_size` rows."""

    batch_size: int

    @property
    def batches_per_epoch(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, epoch: int) -> Generator[Batch, None, None]: ...


@dataclass(frozen=True)
class EpochResult:
    """`loss` and `train_top1` are means over the epoch's steps and images, on the views shown, as the weights moved.
    `epoch` counts from 1, and `steps` from the start of the run. `wait_s`, of `elapsed_s`, is how long the loop stood
    waiting for its next batch: for the source to draw or to read it (a GPU may be at work meanwhile)."""

    epoch: int
    steps: int
    images: int
    loss: float
    train_top1: float
    lr: float
    images_per_s: float
    elapsed_s: float
    wait_s: float


class _Timed:
    """Batches, and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.wait_s = batches, 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.wait_s += time.perf_counter() - start_s


class Trainer:
    """A network, its optimizer and its place in the run. `run_epoch` is all it does; `state` is all it needs to resume.

    `total_steps` ends the run, within an epoch if need be. The network is trained in place. With `compiled`, whole
    batches go through torch.compile; `compile_s` is what that took, outside of every epoch's time. `observe` is shown
    every batch and its logits before the weights move; it must leave both as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        loss: Loss,
        recipe: Recipe,
        total_steps: int,
        device: torch.device,
        precision: str,
        compiled: bool = False,
        observe: Observe | None = None,
    ) -> None:
        self.model, self.source, self.loss, self.recipe = model, source, loss, recipe
        self.total_steps, self.device, self.precision = total_steps, device, precision
        self.epoch, self.step, self._observe = 0, 0, observe
        self.compiled, self.compile_s = compiled, 0.0
        self._whole: Forward | None = None  # compiled when the first whole batch is there
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov,
            fused=precision != "float64",
        )

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // self.source.batches_per_epoch)

    def run_epoch(self, progress: Progress = silent) -> EpochResult:
        """One pass over the source, or what is left of the run. Raises FailureError naming the step of a NaN loss, or
        the epoch that left weights which are not finite."""
        self.model.train()
        losses: list[Tensor] = []  # device tensors: reading one would make the host wait
        hits: list[Tensor] = []
        images, first_step, start_s, compiled_s = 0, self.step, time.perf_counter(), -self.compile_s
        label = f"epoch {self.epoch + 1}/{self.epochs}"
        # closed even after an error, whose traceback would otherwise keep a source's threads alive
        with closing(self.source.batches(self.epoch)) as given, progress(label, len(self.source), "img") as tick:
            batches = _Timed(given)
            for batch in batches:
                loss, hits_b = self._step(batch)
                losses.append(loss)
                hits.append(hits_b)
                images += len(batch.labels_b)
                tick(len(batch.labels_b))
                if self.finished:
                    break
        steps = torch.stack(losses)
        self._refuse_nan(steps, first_step)
        self._refuse_broken_weights()
        compiled_s += self.compile_s
        elapsed_s = time.perf_counter() - start_s - compiled_s
        self.epoch += 1
        return EpochResult(
            epoch=self.epoch,
            steps=self.step,
            images=images,
            loss=float(steps.mean()),
            train_top1=float(torch.stack(hits).sum()) / images,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_s=images / elapsed_s,
            elapsed_s=elapsed_s,
            wait_s=batches.wait_s,
        )

    def _step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.recipe, self.step, self.total_steps)
        forward = self._forward_for(batch)
        with autocast(self.device, self.precision):
            logits_bc = forward(batch.images_bchw)
        logits_bc = logits_bc.to(batch.images_bchw.dtype)
        if self._observe is not None:
            self._observe(logits_bc.detach(), batch)
        loss = self.loss(logits_bc, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.detach(), (logits_bc.detach().argmax(dim=1) == batch.labels_b).sum()

    def _forward_for(self, batch: Batch) -> Forward:
        """The compiled one for whole batches only: a ragged last batch would be compiled for once more."""
        if not self.compiled or len(batch.labels_b) != min(self.source.batch_size, len(self.source)):
            return self.model
        if self._whole is None:
            self._whole, self.compile_s = compiled_forward(self.model, batch.images_bchw, self.precision)
        return self._whole

    @staticmethod
    def _refuse_nan(losses: Tensor, first_step: int) -> None:
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            step = first_step + int(bad[0])
            raise FailureError(f"training: the loss at step {step} is not a number. Try a smaller --lr")

    def _refuse_broken_weights(self) -> None:
        """The last step may break them after the last loss was looked at."""
        whole = torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()])
        if not whole.all():
            raise FailureError(f"training: the weights after step {self.step - 1} are not finite. Try a smaller --lr")

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
