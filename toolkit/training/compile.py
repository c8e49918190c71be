"""torch.compile, apart from the clock and without a trace: a warm-up that leaves network and generators as they were.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from toolkit.core.device import autocast
from toolkit.core.errors import FailureError

Forward = Callable[[Tensor], Tensor]

# where torch was built for CUDA but finds no GPU it says so on every compilation, which nobody can mend
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def compiled_forward(model: nn.Module, images_bchw: Tensor, precision: str) -> tuple[Forward, float]:
    """(the model's forward for batches like this one, the seconds it took to compile it both ways).

    Another batch size would compile it once more: give it whole batches only. Raises FailureError, with the compiler's
    reason, where it cannot be compiled.
    """
    start_s, device = time.perf_counter(), images_bchw.device
    # forward alone, not the module: its hook counts images, and each count would be a new program to the compiler
    forward: Forward = torch.compile(model.forward, dynamic=False)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            with autocast(device, precision):
                logits_bc = forward(images_bchw)
            logits_bc.to(images_bchw.dtype).sum().backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FailureError(
            f"--compile: torch could not compile the network ({reason[:200]}). It needs a C++ compiler (on a GPU also "
            "Triton). Install one, or leave --compile out"
        ) from error
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return forward, time.perf_counter() - start_s
