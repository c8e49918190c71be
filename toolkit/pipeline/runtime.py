"""What every command that computes decides first: device, precision, threads, and the settings it will record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from toolkit.core import defaults
from toolkit.core.device import available_cpus, parameter_dtype, resolve_device, resolve_precision
from toolkit.core.errors import UsageError
from toolkit.core.processes import ALONE, Processes


@dataclass(frozen=True)
class Compute:
    device: torch.device
    precision: str
    processes: Processes = ALONE

    @property
    def threads(self) -> int:
        """CPU threads a resumed run must have too, to end in the same weights bit for bit."""
        return torch.get_num_threads()

    @property
    def dtype(self) -> torch.dtype:
        return parameter_dtype(self.precision)

    def place(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on the device, in its dtype, channels last: what convolutions are fastest in."""
        return model.to(device=self.device, dtype=self.dtype).to(memory_format=torch.channels_last)


def compute_on(
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    processes: Processes = ALONE,
) -> Compute:
    """Without `threads`, OMP_NUM_THREADS holds, unless torchrun set it; without both, torch's own choice, but no more
    than the CPUs it has, which the processes of one machine share. FFCV's loader decodes with as many. Of several
    processes each has a GPU of its own.

    Raises UsageError for a device, precision or number of threads that cannot be.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    elif processes.local_count > 1 and _torchrun_chose():
        torch.set_num_threads(max(1, available_cpus() // processes.local_count))
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    resolved = resolve_device(device)
    if processes.count > 1 and resolved.type == "cuda":
        resolved = _own_gpu(resolved, processes)
    settled = resolve_precision(precision, resolved)
    if resolved.type == "cuda" and settled == "float32":
        # cuDNN would multiply in TF32, with ten bits of mantissa, and still call it float32
        torch.backends.cudnn.allow_tf32 = False
    return Compute(resolved, settled, processes)


def _torchrun_chose() -> bool:
    """Whether OMP_NUM_THREADS is nobody's choice: torchrun gives each of several processes one thread, with which FFCV
    would decode for a GPU on one core of however many."""
    said = os.environ.get("OMP_NUM_THREADS")
    return said is None or (said == "1" and "TORCHELASTIC_RUN_ID" in os.environ)


def _own_gpu(asked: torch.device, processes: Processes) -> torch.device:
    """Raises UsageError where there are fewer than processes, or one was named."""
    if asked.index is not None:
        raise UsageError(f"--device {asked}: several processes can't share a GPU. Use --device cuda, for one each")
    if processes.local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"--device cuda: torch finds {torch.cuda.device_count()} GPUs here, too few for a process each. "
            "Give torchrun a smaller --nproc-per-node, or use --device cpu"
        )
    torch.cuda.set_device(processes.local_rank)
    return torch.device("cuda", processes.local_rank)


def processes_settings(compute: Compute) -> dict[str, Any]:
    """Shares of a batch are summed in another order, so it is a setting of the run, of more than one process."""
    return {"processes": compute.processes.count} if compute.processes.count > 1 else {}
