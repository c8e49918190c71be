"""What every command that computes decides first: device, precision, threads, and the settings it will record."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from toolkit.core.device import available_cpus, parameter_dtype, resolve_device, resolve_precision
from toolkit.core.errors import UsageError


@dataclass(frozen=True)
class Compute:
    device: torch.device
    precision: str

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


def compute_on(device: str = "auto", precision: str = "auto", threads: int | None = None) -> Compute:
    """Without `threads`, OMP_NUM_THREADS holds; without both, torch's own choice, but no more than the CPUs it has.

    Raises UsageError for a device, precision or number of threads that cannot be.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), available_cpus()))
    resolved = resolve_device(device)
    settled = resolve_precision(precision, resolved)
    if resolved.type == "cuda" and settled == "float32":
        # cuDNN would multiply in TF32, with ten bits of mantissa, and still call it float32
        torch.backends.cudnn.allow_tf32 = False
    return Compute(resolved, settled)
