"""How fast a teacher runs here, for the dry runs of cache-teacher and verify-cache."""

from __future__ import annotations

import time

import numpy as np

from toolkit.pipeline.cache_request import Request

_TIMED_BATCHES = 4


def teacher_rate(request: Request) -> tuple[float, str]:
    """(images a second, on real rows, drawn as they will be, after a batch that warms it up; these words)"""
    views = request.teacher.reader(request.data.split("train"), request.data.record.plan)
    batch = min(request.teacher.batch_size, len(request.rows_n))
    at_n = np.resize(request.rows_n, _TIMED_BATCHES * batch)
    request.teacher.run(views, at_n[:batch], 0)
    start_s = time.perf_counter()
    request.teacher.run(views, at_n, 0)
    rate = len(at_n) / (time.perf_counter() - start_s)
    return rate, f"{_TIMED_BATCHES} batches run here: {rate:,.0f} img/s"
