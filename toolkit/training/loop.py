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
from toolkit.core.hashing import mix
from toolkit.core.processes import ALONE, Processes
from toolkit.core.progress import Progress, silent
from toolkit.core.recipes import Recipe, lr_at
from toolkit.training.average import Average
from toolkit.training.compile import Forward, compiled_forward
from toolkit.training.gradients import sum_gradients
from toolkit.training.optimizer import sgd
from toolkit.training.showing import Batch

Loss = Callable[[Tensor, Batch], Tensor]
Observe = Callable[[Tensor, Batch], None]

_SALT_CHANCE = 0xD1CE


class Diverged(FailureError):
    """A training whose loss or weights are no numbers any more."""


class Source(Protocol):
    """What the loop trains on: ResidentSource or StreamSource. Every batch but the last has `batch_size` rows, of which
    each of several processes is given its share. `len` counts an epoch's batches; it can begin at any of them."""

    batch_size: int

    @property
    def rows(self) -> int: ...

    def __len__(self) -> int: ...

    def batches(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]: ...


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


@dataclass
class _Under:
    """An epoch under way: what its steps have given so far, in tensors on the device (reading one would make the host
    wait), and the seconds that they and waiting for their batches took.

    Each step's loss (s steps) is written into memory that the first one takes for all. Kept as they come, a small
    tensor for each step would stand between the large ones that come and go, and glibc 2.36's aligned allocations then
    find no room twice: a student of 8 x 8 pixels grew by half a megabyte at each step.
    """

    losses_s: Tensor | None = None
    hits: Tensor | None = None
    batches: int = 0
    images: int = 0
    elapsed_s: float = 0.0
    wait_s: float = 0.0

    def add(self, loss: Tensor, hits: Tensor, images: int, steps: int) -> None:
        """Of one of the `steps` of an epoch."""
        if self.losses_s is None or self.hits is None:
            self.losses_s, self.hits = loss.new_zeros(steps), torch.zeros_like(hits)
        self.losses_s[self.batches] = loss
        self.hits += hits
        self.batches += 1
        self.images += images

    def sums(self, processes: Processes) -> tuple[Tensor, Tensor]:
        """(the loss of each step, all hits), over all processes."""
        assert self.losses_s is not None and self.hits is not None, "no step was made"
        return processes.sum_(self.losses_s[: self.batches].clone()), processes.sum_(self.hits.clone())


class _Timed:
    """Batches, and the seconds of the epoch under way: those spent waiting for them, and all up to the last `look`, but
    for the pauses and for what is `left_out_s`."""

    def __init__(self, batches: Iterator[Batch], under: _Under) -> None:
        self._batches, self._under = batches, under
        self._looked_s, self.left_out_s = time.perf_counter(), 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self._under.wait_s += time.perf_counter() - start_s

    def look(self) -> None:
        now_s = time.perf_counter()
        self._under.elapsed_s += now_s - self._looked_s - self.left_out_s
        self._looked_s, self.left_out_s = now_s, 0.0

    def pause(self, act: Callable[[], None]) -> None:
        self.look()
        act()
        self._looked_s = time.perf_counter()


class Trainer:
    """A network, its optimizer and its place in the run. `run_epoch` is all it does; `state` is all it needs to resume.

    `total_steps` ends the run, within an epoch if need be. The network is trained in place. With `compiled`, whole
    batches go through torch.compile; `compile_s` is what that took, outside of every epoch's time. `observe` is shown
    every batch and its logits before the weights move; it must leave both as they are. What the network draws by chance
    (dropout) is decided by `seed`, the step and the process. Where the recipe has an `ema`, an average follows the
    weights from step to step, and `end` leaves it in the network; what is observed and told is of the weights.

    Several `processes` move the weights by the gradient of the whole batch, of which each has a share. Batch
    normalisation alone knows of no others: it takes the statistics of its process's rows, and the running ones that are
    kept are the first process's.
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
        seed: int = 0,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.source, self.loss, self.recipe = model, source, loss, recipe
        self.total_steps, self.device, self.precision = total_steps, device, precision
        self.epoch, self.step, self._observe = 0, 0, observe
        self.compiled, self.compile_s = compiled, 0.0
        self.processes, self._under = processes, _Under()
        self._chance = int(mix(seed, _SALT_CHANCE, processes.rank))
        self._whole: Forward | None = None  # compiled when the first whole batch is there
        self.optimizer = sgd(model, recipe, fused=precision != "float64")
        self._average = None if recipe.ema is None else Average(recipe.ema)

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def epochs(self) -> int:
        return -(-self.total_steps // len(self.source))

    def run_epoch(self, progress: Progress = silent, after_step: Callable[[], None] = lambda: None) -> EpochResult:
        """One pass over the source, or what is left of it or of the run. `after_step` is called between two steps of
        it, when `state` may be asked for. Raises Diverged naming the step of a NaN loss, or the epoch that left
        weights which are not finite."""
        self.model.train()
        under, label = self._under, f"epoch {self.epoch + 1}/{self.epochs}"
        # closed even after an error, whose traceback would otherwise keep a source's threads alive
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            closing(self.source.batches(self.epoch, under.batches)) as given,
            progress(label, self.source.rows, "img") as tick,
        ):
            tick(under.images)
            batches = _Timed(given, under)
            for batch in batches:
                rows, compiled_s = self._rows_of_all(batch), self.compile_s
                loss, hits = self.take_step(batch)
                batches.left_out_s += self.compile_s - compiled_s
                under.add(loss, hits, rows, len(self.source))
                tick(rows)
                if self.finished:
                    break
                if under.batches < len(self.source):
                    batches.pause(after_step)
        losses, hits = under.sums(self.processes)
        self._refuse_nan(losses, self.step - under.batches)
        self._refuse_broken_weights()
        batches.look()
        self.epoch, self._under = self.epoch + 1, _Under()
        return EpochResult(
            epoch=self.epoch,
            steps=self.step,
            images=under.images,
            loss=float(losses.mean()),
            train_top1=float(hits) / under.images,
            lr=self.optimizer.param_groups[0]["lr"],
            images_per_s=under.images / under.elapsed_s,
            elapsed_s=under.elapsed_s,
            wait_s=under.wait_s,
        )

    def take_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the loss, the hits), of this process's rows; over all processes they add up to the batch's."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(self.recipe, self.step, self.total_steps)
        self._draw_anew()
        self.optimizer.zero_grad(set_to_none=True)
        if len(batch.labels_b):
            loss, hits = self._backward(batch)
        else:  # a ragged last batch may have fewer rows than there are processes
            loss, hits = self._nothing()
        sum_gradients(self.model, self.processes)
        self.optimizer.step()
        self.step += 1
        if self._average is not None:
            self._average.follow(self.model)
        return loss, hits

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        forward = self._forward_for(batch)
        with autocast(self.device, self.precision):
            logits_bc = forward(batch.images_bchw)
        logits_bc = logits_bc.to(batch.images_bchw.dtype)
        if self._observe is not None:
            self._observe(logits_bc.detach(), batch)
        loss = self.loss(logits_bc, batch)
        if self.processes.count > 1:
            loss = loss * (len(batch.labels_b) / self._rows_of_all(batch))
        loss.backward()
        return loss.detach(), (logits_bc.detach().argmax(dim=1) == batch.labels_b).sum()

    def _nothing(self) -> tuple[Tensor, Tensor]:
        dtype = next(self.model.parameters()).dtype
        return torch.zeros((), dtype=dtype, device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)

    def _rows_of_all(self, batch: Batch) -> int:
        """Of the batch that this process holds a share of."""
        if self.processes.count == 1:
            return len(batch.labels_b)
        return min(self.source.batch_size, self.source.rows - self._under.batches * self.source.batch_size)

    def _draw_anew(self) -> None:
        """Torch's generators, for this step alone: a resumed run draws what one left alone would."""
        number = (self._chance + self.step) % (1 << 63)
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            torch.cuda.default_generators[index].manual_seed(number)

    def _forward_for(self, batch: Batch) -> Forward:
        """The compiled one for whole batches only: a ragged last batch would be compiled for once more."""
        whole = self.processes.share(min(self.source.batch_size, self.source.rows)) if self.compiled else slice(0)
        if not self.compiled or len(batch.labels_b) != whole.stop - whole.start:
            return self.model
        if self._whole is None:
            self._whole, self.compile_s = compiled_forward(self.model, batch.images_bchw, self.precision)
        return self._whole

    @staticmethod
    def _refuse_nan(losses: Tensor, first_step: int) -> None:
        bad = torch.nonzero(~torch.isfinite(losses))
        if len(bad):
            step = first_step + int(bad[0])
            raise Diverged(f"training: the loss at step {step} is not a number. Try a smaller --lr")

    def _refuse_broken_weights(self) -> None:
        """The last step may break them after the last loss was looked at."""
        whole = torch.stack([tensor.isfinite().all() for tensor in self.model.state_dict().values()])
        if not whole.all():
            raise Diverged(f"training: the weights after step {self.step - 1} are not finite. Try a smaller --lr")

    def end(self) -> None:
        """Leaves the average in the network, where one was kept: the training is over."""
        if self._average is not None:
            self.model.load_state_dict(self._average.tensors)

    def state(self) -> dict[str, Any]:
        """Of several processes all must ask for it: what each saw of an epoch under way is added up."""
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self._average is not None:
            state["average"] = self._average.tensors
        under = self._under
        if under.batches:
            losses, hits = under.sums(self.processes)
            seen = {"losses": losses, "hits": hits, "images": under.images}
            state["under"] = {**seen, "elapsed_s": under.elapsed_s, "wait_s": under.wait_s}
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load(state["average"], self.model)
        self.epoch, self.step, self._under = state["epoch"], state["step"], _Under()
        if "under" in state:
            seen = dict(state["under"])
            mine = 1 if self.processes.first else 0  # the sums are the first process's: they will be added up again
            losses_s, hits = ((seen.pop(name) * mine).to(self.device) for name in ("losses", "hits"))
            batches = len(losses_s)
            losses_s = torch.cat([losses_s, losses_s.new_zeros(len(self.source) - batches)])
            self._under = _Under(losses_s, hits, batches, **seen)
