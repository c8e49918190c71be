"""Recording how a training goes: what the training forward says of each row, epoch by epoch, and snapshots.

Shapes: n rows, b batch, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toolkit.core.errors import FailureError
from toolkit.core.processes import ALONE, Processes
from toolkit.core.progress import Progress, silent
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.cache_writing import CacheWriter
from toolkit.formats.dynamics import SERIES, SNAPSHOT
from toolkit.formats.parts import Parts
from toolkit.models.zoo import head_of
from toolkit.teacher.before import HELD_BYTES, Held, Spilled
from toolkit.training.showing import Batch

# (logits (n, c), features (n, d) float16) of the canonical views of the rows at these positions, by today's weights
Look = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def observed(logits_bc: Tensor, labels_b: Tensor, log_before_bc: Tensor) -> tuple[Tensor, Tensor]:
    """What is recorded of a batch, (b, 6) float32 in the order of SERIES, and its log-probabilities (b, c) float32.

    `log_before_bc` are those of the epoch before, NaN where there was none: then so is the KL.
    """
    logits_bc = logits_bc.float()
    log_p_bc, label_b1 = F.log_softmax(logits_bc, dim=1), labels_b[:, None]
    log_p_b1, p_bc = log_p_bc.gather(1, label_b1), log_p_bc.exp()
    error_bc = p_bc.scatter(1, label_b1, torch.expm1(log_p_b1))  # p_y − 1, of which float32 loses nothing near p_y = 1
    columns = {
        "correct": (logits_bc.argmax(dim=1) == labels_b).float(),
        "loss": -log_p_b1[:, 0],
        "el2n": error_bc.norm(dim=1),
        "logit_true": logits_bc.gather(1, label_b1)[:, 0],
        "logit_other": logits_bc.scatter(1, label_b1, -torch.inf).amax(dim=1),
        "kl": (p_bc * (log_p_bc - log_before_bc)).sum(dim=1).clamp_min(0),  # below 0 by rounding alone
    }
    return torch.stack([columns[name] for name in SERIES], dim=1), log_p_bc


class Recorder:
    """Watches one training, `observe` batch by batch, and keeps each epoch as a part that survives a kill.

    All stays on the device until the epoch ends, (n, c) and (n, 6) float32: the former is part of each checkpoint, and
    the latter of one within an epoch. Where both together would take more than HELD_BYTES they lie on disk (where the
    device is a GPU the former alone), for which the host waits at every batch (see before.py). Of several processes
    each sees its own rows: they are put together then, a block at a time.
    `rows_n` are the rows trained on, increasing. Under bfloat16 the logits that training sees keep three digits: the
    last layer is computed again in float32 from its input, where a linear layer makes the logits (`exact`; not of
    compiled networks, whose inner layers can't be listened to).
    """

    def __init__(
        self,
        model: nn.Module,
        rows_n: np.ndarray,
        classes: int,
        device: torch.device,
        parts: Parts,
        seed_index: int,
        snapshots: list[int],
        look: Look,
        exact: bool = True,
        progress: Progress = silent,
        processes: Processes = ALONE,
    ) -> None:
        self._processes = processes
        self._model, self._parts, self._seed_index = model, parts, seed_index
        self._snapshots, self._look, self._progress = snapshots, look, progress
        self._rows = len(rows_n)
        self._rows_n = None  # where it is all rows, their numbers are their places
        if not np.array_equal(rows_n, np.arange(self._rows)):
            self._rows_n = torch.from_numpy(np.asarray(rows_n, dtype=np.int64)).to(device)
        how = (len(rows_n), classes, device, processes)
        self._log_p: Held | Spilled
        if 4 * len(rows_n) * (classes + len(SERIES)) <= HELD_BYTES:
            self._log_p = Held(*how)
        else:
            processes.first_only(parts.begin)
            self._log_p = Spilled(*how, parts.folder, f"seed-{seed_index}")
        self._seen_n6 = self._log_p.scratch(len(SERIES))
        self._all_n6 = self._seen_n6 if processes.count == 1 else self._log_p.scratch(len(SERIES))
        self._head, self._read = head_of(model) if exact else None, list[Tensor]()
        self._epochs = 0
        if self._head is not None:
            self._head.register_forward_pre_hook(self._listen)

    def _listen(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._model.training:
            self._read = [args[0].detach()]

    @torch.no_grad()
    def observe(self, logits_bc: Tensor, batch: Batch) -> None:
        """Takes in a batch just after its forward pass, before the weights move. The host never waits."""
        if self._head is not None and self._read:
            features_bd = self._read.pop().to(self._head.weight.dtype)
            logits_bc = F.linear(features_bd, self._head.weight, self._head.bias)
        at_b = batch.rows_b if self._rows_n is None else torch.searchsorted(self._rows_n, batch.rows_b)
        seen_b6, log_p_bc = observed(logits_bc, batch.labels_b, self._log_p.before(at_b))
        self._seen_n6[at_b] = seen_b6
        self._log_p.now(at_b, log_p_bc)

    def end_epoch(self, epoch: int) -> None:
        """Keeps what was seen in `epoch`, from 1, and the snapshot after it where one is wanted."""
        seen_n6 = self._of_all()
        assert bool(torch.isfinite(seen_n6[:, 0]).all()), "an epoch shows every row"
        self._log_p.end_epoch()
        self._processes.first_only(lambda: self._keep(epoch, seen_n6.cpu().numpy()))
        self._seen_n6.fill_(torch.nan)
        self._epochs = epoch

    def _keep(self, epoch: int, seen_n6: np.ndarray) -> None:
        columns = {name: seen_n6[:, at].astype(SERIES[name], copy=False) for at, name in enumerate(SERIES)}
        self._parts.save(epoch_key(self._seed_index, epoch), **columns)
        if epoch in self._snapshots:
            self._model.eval()
            with self._progress(f"snapshot of epoch {epoch}", self._rows, "img") as tick:
                for start, stop in block_bounds(self._rows):
                    logits_nc, features_nd = self._look(np.arange(start, stop))
                    key = snapshot_key(self._seed_index, epoch, start)
                    self._parts.save(key, logits=logits_nc.astype(np.float16), features=features_nd)
                    tick(stop - start)

    def _of_all(self) -> Tensor:
        """What all processes have seen of this epoch, NaN where it is still to come: (n, 6). Their log-probabilities
        are put together too."""
        for start, stop in block_bounds(self._rows) if self._processes.count > 1 else []:
            block = slice(start, stop)
            mine_b1 = ~self._seen_n6[block, :1].isnan()  # `correct` is a number wherever a row was seen
            seen_b1 = self._processes.sum_(mine_b1.float()) > 0
            if not bool(seen_b1.any()):  # between two epochs
                self._all_n6[block] = torch.nan
                continue
            seen_b6 = self._processes.sum_(torch.where(mine_b1, self._seen_n6[block], 0.0))
            self._all_n6[block] = torch.where(seen_b1, seen_b6, torch.nan)
            self._log_p.gather(block, mine_b1, seen_b1)
        return self._all_n6

    def state(self) -> dict[str, Any]:
        """Of several processes all must ask for it."""
        seen_n6 = self._of_all()
        within = {} if bool(seen_n6[:, 0].isnan().all()) else {"seen": seen_n6}
        return {"epochs": self._epochs, "log_before": self._log_p.state(), **within}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Goes on where a killed training stopped. Raises FailureError where it had not recorded all of it."""
        epochs = 0 if state is None else state["epochs"]
        missing = [e for e in range(1, epochs + 1) if epoch_key(self._seed_index, e) not in self._parts]
        if state is None or missing:
            raise FailureError(
                f"{self._parts.folder}: lacks the dynamics of an unfinished training's first epochs. "
                "Pass --no-dynamics, without --seeds and --snapshots, to finish it so, or --force to start it again"
            )
        self._epochs = epochs
        self._log_p.load_state(state["log_before"], epochs, within="seen" in state)
        if "seen" in state and self._processes.first:  # once: the others' will be added to it
            self._seen_n6.copy_(state["seen"])


def epoch_key(seed_index: int, epoch: int) -> str:
    return f"seed-{seed_index}-epoch-{epoch:05d}"


def snapshot_key(seed_index: int, epoch: int, start: int) -> str:
    return f"seed-{seed_index}-snapshot-{epoch:05d}-rows-{start:010d}"


def block_bounds(rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS)]


def join_dynamics(
    out: CacheWriter,
    parts: Parts,
    rows_n: np.ndarray,
    labels_n: np.ndarray,
    seeds: int,
    epochs: int,
    snapshots: list[int],
) -> None:
    """Writes the parts of `seeds` trainings of `epochs` epochs as formats/dynamics.py lays them out."""
    out.write("rows", np.asarray(rows_n, dtype=np.int64))
    out.write("labels", np.asarray(labels_n, dtype=np.int64))
    for index in range(seeds):
        for epoch in range(1, epochs + 1):
            for name in SERIES:
                out.write(f"seeds/{index}/epochs/{epoch}/{name}", parts.load(epoch_key(index, epoch), name))
        for epoch in snapshots:
            for name in SNAPSHOT:
                blocks = _snapshot_blocks(parts, index, epoch, name, len(rows_n))
                width = parts.load(snapshot_key(index, epoch, 0), name).shape[1]
                place = f"seeds/{index}/snapshots/{epoch}/{name}"
                out.write_blocks(place, (len(rows_n), width), np.float16, blocks)


def _snapshot_blocks(parts: Parts, seed_index: int, epoch: int, name: str, rows: int) -> Iterator[np.ndarray]:
    for start, _ in block_bounds(rows):
        yield parts.load(snapshot_key(seed_index, epoch, start), name)
