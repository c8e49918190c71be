"""Which device, and at which precision: chosen once, recorded in every artifact."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from toolkit.core.errors import UsageError, unknown_name

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "bfloat16", "float64")


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one, else the CPU. Raises UsageError for a device this machine has not."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: not a device. Use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no GPU here. Use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch finds {torch.cuda.device_count()} GPUs here, counted from 0")
    return device


def cpu_bfloat16() -> str | None:
    """What multiplies bfloat16 on this CPU, or None. Torch has no public way to ask, and not every version this one."""
    import torch

    kinds = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    return next((kind for kind, name in kinds.items() if getattr(torch.cpu, name, bool)()), None)


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 where the hardware multiplies it (AMX, AVX512-BF16, Ampere and later), else float32."""
    import torch

    if name not in PRECISIONS:
        raise unknown_name("precision", name, list(PRECISIONS))
    if name != "auto":
        return name
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_bfloat16() is not None
    return "bfloat16" if fast else "float32"


def parameter_dtype(precision: str) -> torch.dtype:
    """Parameters are float32 under bfloat16 autocast too; float64 is for proofs of exactness."""
    import torch

    return torch.float64 if precision == "float64" else torch.float32


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context a forward pass runs in."""
    import torch

    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
