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
from toolkit.core.files import refused
from toolkit.core.processes import Processes

HELD_BYTES = 1 << 26  # on the device, of all rows; more of them go to disk
_ROWS_AT_A_TIME = 8192


class Held:
    """(n, c) float32 on the device, and with each checkpoint."""

    def __init__(self, rows: int, classes: int, device: torch.device, processes: Processes) -> None:
        self._processes = processes
        self._log_nc = self._all_nc = torch.full((rows, classes), torch.nan, device=device)

    def scratch(self, columns: int) -> Tensor:
        """(n, columns) float32 of NaN on the device."""
        return torch.full((len(self._log_nc), columns), torch.nan, device=self._log_nc.device)

    def before(self, at_b: Tensor) -> Tensor:
        return self._log_nc[at_b]

    def now(self, at_b: Tensor, log_p_bc: Tensor) -> None:
        self._log_nc[at_b] = log_p_bc

    def gather(self, mine_n1: Tensor, seen_n1: Tensor) -> None:
        """Takes in what other processes saw: `mine_n1` are this one's rows, `seen_n1` those of all."""
        log_nc = self._processes.sum_(torch.where(mine_n1, self._log_nc, 0.0))
        self._all_nc = torch.where(seen_n1, log_nc, self._log_nc)

    def end_epoch(self) -> None:
        if self._processes.count > 1:
            self._log_nc.copy_(self._all_nc)

    def state(self) -> Tensor:
        return self._log_nc if self._processes.count == 1 else self._all_nc

    def load_state(self, saved: Any, epochs: int) -> None:
        self._log_nc.copy_(saved)


class Spilled:
    """The same in `folder`, a file an epoch: (n, c) float32, mapped. That of the epoch under way is written beside the
    last, so that a resumed training finds what its checkpoint was made beside; of one long gone the file is deleted.

    Each of several processes has files of its own. Raises FailureError where the disk has no room.
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
        """The epoch under way. With its first batch the checkpoint of the epoch before is there: what came before that
        is done with."""
        if self._now_nc is None:
            for path, epoch in self._files():
                if epoch < self._epochs:
                    path.unlink()
            self._now_nc = self._open(self._epochs + 1, new=True)
        return self._now_nc

    def gather(self, mine_n1: Tensor, seen_n1: Tensor) -> None:
        """As of Held. A block of rows at a time: what all saw is written in the place of what only this one did."""
        now_nc = self._begun()
        for start in range(0, self._shape[0], _ROWS_AT_A_TIME):
            block = slice(start, start + _ROWS_AT_A_TIME)
            mine_b1 = mine_n1[block].to(self._device)
            log_bc = self._processes.sum_(torch.where(mine_b1, now_nc[block].to(self._device), 0.0))
            now_nc[block] = log_bc.cpu()

    def end_epoch(self) -> None:
        self._epochs, self._before_nc, self._now_nc = self._epochs + 1, self._now_nc, None

    def state(self) -> None:
        """It stays where it is, but must be there when the checkpoint is."""
        with self._path(self._epochs + (self._now_nc is not None)).open("rb") as file:
            os.fsync(file.fileno())

    def load_state(self, saved: Any, epochs: int) -> None:
        if saved is not None:
            raise FailureError(
                f"{self._folder}: dynamics of an earlier kdtool, which held what this one keeps on disk. "
                "Pass --force to start the training again"
            )
        self._epochs = epochs
        self._before_nc = self._open(epochs, new=False) if epochs else None
        under_way = self._path(epochs + 1)
        self._now_nc = self._open(epochs + 1, new=False) if under_way.is_file() else None

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
