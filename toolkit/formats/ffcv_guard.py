"""Keeping FFCV in bounds: its hands off torch's threads, and its compiler, Numba, off a thread pool that can hang.

Importing FFCV, opening a Loader and starting an epoch each set torch's number of threads. And Numba takes Intel's TBB
where it finds it (Debian's OpenCV headers bring it), whose pool waits for ever at exit once the process has forked, as
FFCV's writer does, on a machine of one core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# read when Numba is imported; somebody's own choice is left alone
os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp workqueue tbb")


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Whatever happens inside, torch computes with as many threads afterwards as before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
