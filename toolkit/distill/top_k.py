"""Targets that keep each row's K largest logits, as K + 1 outcomes at any temperature: those classes, and any other.

Shapes: b batch, K classes kept of each row's targets; 4 is as many as there are TAIL_TEMPERATURES.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.core.errors import UsageError
from toolkit.formats.encodings import TAIL_TEMPERATURES
from toolkit.training.targets import TopK


def teacher_outcomes(teacher: TopK, classes: int, dtype: torch.dtype, temperature: float) -> Tensor:
    """Log-probabilities at τ of the classes kept and of any other: (b, K + 1). Raises UsageError below τ = 1."""
    left_out = classes - teacher.values_bk.shape[1]
    tail_b = tail_log_sum_exp(teacher.tail_b4.to(dtype), left_out, temperature)
    return F.log_softmax(torch.cat([teacher.values_bk.to(dtype) / temperature, tail_b[:, None]], dim=1), dim=1)


def tail_log_sum_exp(tail_b4: Tensor, left_out: int, temperature: float) -> Tensor:
    """log Σ exp(z/τ) over the `left_out` classes that are not kept, from its values at TAIL_TEMPERATURES: (b,).

    Exact at those temperatures and where one class is left out, else interpolated (see `tail_weights`). Raises
    UsageError for a temperature below 1.
    """
    at_infinity, *weights = tail_weights(temperature)
    tail_b = weights[0] * tail_b4[:, 0]  # a sum of columns: a tensor of weights would have to be sent to the device
    for column, weight in enumerate(weights[1:], start=1):
        tail_b = tail_b + weight * tail_b4[:, column]
    return tail_b + at_infinity * math.log(left_out)


@cache
def tail_weights(temperature: float) -> tuple[float, ...]:
    """L(β) = log Σ exp(βz), β = 1/τ, as a fixed combination of L(0), the log of a count, and L at TAIL_TEMPERATURES.

    The line from L(0) to L(1), and the polynomial of degree 4 in log(1 + 4β) through what L is off that line. L is
    straight for large β and bends near 0: in β itself the polynomial would swing between τ = 1 and 2, and enlarge the
    rounding of the stored values 15 times; so it is 3.6 at most. A line is reproduced. Raises UsageError below τ = 1.
    """
    if temperature < 1:
        raise UsageError(
            f"--temperature {temperature:g}: top-k targets serve temperatures from 1. "
            "Run: kdtool cache-teacher --encoding float16 --force, with the subset's --subset"
        )
    nodes, beta = [0.0, *(1 / tau for tau in TAIL_TEMPERATURES)], 1 / temperature
    bend = _lagrange([math.log1p(4 * node) for node in nodes], math.log1p(4 * beta))
    zero, one = nodes.index(0), nodes.index(1)
    weights = list(bend)
    weights[zero] += (1 - beta) - sum(w * (1 - node) for w, node in zip(bend, nodes, strict=True))
    weights[one] += beta - sum(w * node for w, node in zip(bend, nodes, strict=True))
    return tuple(weights)


def _lagrange(nodes: list[float], x: float) -> list[float]:
    """The weights of the values at `nodes` in the polynomial through them, at x."""
    return [math.prod((x - other) / (node - other) for other in nodes if other != node) for node in nodes]
