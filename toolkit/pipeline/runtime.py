"""What every command that computes decides first: device, precision, threads, and the settings it will record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from toolkit.core.device import parameter_dtype, resolve_device, resolve_precision
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
    """Raises UsageError for a device, precision or number of threads that cannot be."""
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    resolved = resolve_device(device)
    settled = resolve_precision(precision, resolved)
    if resolved.type == "cuda" and settled == "float32":
        # cuDNN would multiply in TF32, with ten bits of mantissa, and still call it float32
        torch.backends.cudnn.allow_tf32 = False
    return Compute(resolved, settled)
