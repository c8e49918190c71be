"""torch.compile, apart from the clock and without a trace: a warm-up that leaves network and generators as they were.

Shapes: b batch, c classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from toolkit.core.device import autocast
from toolkit.core.errors import FailureError

Forward = Callable[[Tensor], Tensor]


def compiled_forward(model: nn.Module, images_bchw: Tensor, precision: str) -> tuple[Forward, float]:
    """(the model's forward for batches like this one, the seconds it took to compile it both ways).

    Another batch size would compile it once more: give it whole batches only. Raises FailureError, with the compiler's
    reason, where it cannot be compiled.
    """
    start_s, device = time.perf_counter(), images_bchw.device
    torch.compiler.reset()  # networks of one class share their code, and of that torch compiles eight and no more
    with _no_trace(model, device), _quiet("torch.utils.cpp_extension"):
        try:
            # forward alone, not the module: its hook counts images, and each count would be a new program
            forward: Forward = torch.compile(model.forward, dynamic=False)
            with autocast(device, precision):
                logits_bc = forward(images_bchw)
            logits_bc.to(images_bchw.dtype).sum().backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in their own ways: a missing g++, no Python.h, an unknown operation
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise FailureError(
                f"--compile: torch could not compile the network ({reason[:200]}). It needs a C++ compiler and "
                "Python's headers, on a GPU also Triton. Leave --compile out, or see all of it with --debug"
            ) from error
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return forward, time.perf_counter() - start_s


@contextmanager
def _no_trace(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What is run inside leaves no gradient, no running statistics and no generator changed."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    model.zero_grad(set_to_none=True)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """A torch built for CUDA says on every compilation that it finds no GPU, which nobody can mend."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)
