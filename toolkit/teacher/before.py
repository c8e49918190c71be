"""Every row's log-probabilities in the epoch before, which a training is compared with: held on the device, or where
they are many in files of their own beside what is recorded.

Shapes: n rows, b batch, c classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.core.errors import FailureError
from toolkit.core.files import on_disk, refused
from toolkit.core.processes import Processes

HELD_BYTES = 1 << 26  # on the device, of all rows; what takes more goes to disk


class Held:
    """(n, c) float32 on the device, and with each checkpoint."""

    def __init__(self, rows: int, classes: int, device: torch.device, processes: Processes) -> None:
        self._processes = processes
        self._log_nc = self._all_nc = torch.full((rows, classes), torch.nan, device=device)
        if processes.count > 1:
            self._all_nc = self._log_nc.clone()

    def scratch(self, columns: int) -> Tensor:
        """(n, columns) float32 of NaN on the device."""
        return torch.full((len(self._log_nc), columns), torch.nan, device=self._log_nc.device)

    def before(self, at_b: Tensor) -> Tensor:
        return self._log_nc[at_b]

    def now(self, at_b: Tensor, log_p_bc: Tensor) -> None:
        self._log_nc[at_b] = log_p_bc

    def gather(self, block: slice, mine_b1: Tensor, seen_b1: Tensor) -> None:
        """Takes in what other processes saw of a block of rows in the epoch under way: `mine_b1` are this one's, and
        `seen_b1` those of all. All call it; again and again, it gives the same."""
        log_bc = self._processes.sum_(torch.where(mine_b1, self._log_nc[block], 0.0))
        self._all_nc[block] = torch.where(seen_b1, log_bc, self._log_nc[block])

    def end_epoch(self) -> None:
        if self._processes.count > 1:
            self._log_nc.copy_(self._all_nc)

    def state(self) -> Tensor:
        return self._all_nc

    def load_state(self, saved: Any, epochs: int, within: bool) -> None:
        self._log_nc.copy_(saved)
        self._all_nc.copy_(saved)


class Spilled:
    """The same in `folder`, a file an epoch: (n, c) float32, mapped. That of the epoch under way is written beside the
    last.

    Each of several processes has files of its own, which hold what all saw, once gathered. What a checkpoint was made
    beside is there as long as it is the last one: its files are on the disk before it is (`state`), the epoch before is
    deleted after it (`_begun`), and what is written into the epoch under way meanwhile is of rows that the checkpoint
    has not seen, or the same once more. Raises FailureError where the disk has no room.
    """

    def __init__(self, rows: int, classes: int, device: torch.device, processes: Processes, folder: Path, key: str):
        self._shape, self._device, self._processes = (rows, classes), device, processes
        self._folder, self._key, self._epochs = folder, f"{key}-process-{processes.rank}-epoch-", 0
        self._before_nc: Tensor | None = None
        self._now_nc: Tensor | None = None

    def before(self, at_b: Tensor) -> Tensor:
        if self._before_nc is None:
            return torch.full((len(at_b), self._shape[1]), torch.nan, device=self._device)
        return self._before_nc[at_b.cpu()].to(self._device)

    def now(self, at_b: Tensor, log_p_bc: Tensor) -> None:
        self._begun()[at_b.cpu()] = log_p_bc.cpu()

    def _begun(self) -> Tensor:
        """The epoch under way: asked for once a row of it was seen, when the checkpoint of the epoch before is there,
        and so what came before that is done with."""
        if self._now_nc is None:
            for path, epoch in list(self._files()):
                if epoch < self._epochs:
                    path.unlink()
            self._now_nc = self._open(self._epochs + 1, new=True)
        return self._now_nc

    def gather(self, block: slice, mine_b1: Tensor, seen_b1: Tensor) -> None:
        """As of Held: what all saw is written in the place of what only this one did."""
        now_bc = self._begun()[block]
        now_bc.copy_(self._processes.sum_(torch.where(mine_b1, now_bc.to(self._device), 0.0)))

    def end_epoch(self) -> None:
        self._epochs, self._before_nc, self._now_nc = self._epochs + 1, self._now_nc, None

    def state(self) -> None:
        """It stays where it is, but must be there when the checkpoint is: in every process."""
        path = self._path(self._epochs + (self._now_nc is not None))
        if path.is_file():
            on_disk(path)
            on_disk(self._folder)
        self._processes.barrier()

    def load_state(self, saved: Any, epochs: int, within: bool) -> None:
        """Goes on beside a checkpoint after `epochs`, or `within` the one that follows: else that one is begun anew, in
        whatever state its file was left."""
        if saved is not None:
            raise FailureError(
                f"{self._folder}: dynamics of an earlier kdtool, which held what this one keeps on disk. "
                "Pass --force to start the training again"
            )
        self._epochs = epochs
        self._before_nc = self._open(epochs, new=False) if epochs else None
        self._now_nc = self._open(epochs + 1, new=False) if within else None

    def _path(self, epoch: int) -> Path:
        return self._folder / f"{self._key}{epoch:05d}.log-probabilities"

    def _files(self) -> Iterator[tuple[Path, int]]:
        for path in self._folder.glob(f"{self._key}*.log-probabilities"):
            found = re.fullmatch(r"(\d+)\.log-probabilities", path.name.removeprefix(self._key))
            if found:
                yield path, int(found[1])

    def _open(self, epoch: int, new: bool) -> Tensor:
        path, size = self._path(epoch), self._shape[0] * self._shape[1]
        if new:
            _reserve(path, 4 * size)
        elif not path.is_file() or path.stat().st_size != 4 * size:
            raise FailureError(
                f"{path}: not there as the unfinished training left it. Pass --no-dynamics, without --seeds and "
                "--snapshots, to finish it so, or --force to start it again"
            )
        return _mapped(path, self._shape)

    def scratch(self, columns: int) -> Tensor:
        """(n, columns) float32 of NaN, which no checkpoint needs: on the device, or on disk in the place of memory."""
        shape = (self._shape[0], columns)
        if self._device.type != "cpu":
            return torch.full(shape, torch.nan, device=self._device)
        path = self._folder / f"{self._key}scratch"
        _reserve(path, 4 * shape[0] * shape[1])
        tensor = _mapped(path, shape).fill_(torch.nan)
        path.unlink()
        return tensor


def _reserve(path: Path, size_bytes: int) -> None:
    try:
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk is told now, and not by a signal
    except OSError as error:
        path.unlink(missing_ok=True)
        raise refused(path, error) from error


def _mapped(path: Path, shape: tuple[int, int]) -> Tensor:
    return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=torch.float32).view(shape)
