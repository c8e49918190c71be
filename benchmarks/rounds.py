"""Contestants in turn: a stage beside its bound, kdtool beside a live teacher, round by round in one process.

A machine's speed drifts, so only what ran within the same round is compared. Every second round runs backwards, which
takes a steady drift out of the mean. A first round of warm-up is kept apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch

from toolkit.report.statistics import Ratio, paired_ratio

NEVER = float("inf")


class Work(NamedTuple):
    """What a block did, in the unit of its contest, and the seconds it took."""

    amount: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


Block = Callable[[], Work]


def settle(device: torch.device | None = None) -> None:
    """Waits until the device has done what it was given: a GPU's work is only begun when a call returns."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def stopwatch(device: torch.device | None = None) -> Iterator[list[float]]:
    """Gives a list that holds the seconds of the block once it has ended, the device's work included."""
    seconds: list[float] = []
    settle(device)
    start_s = time.perf_counter()
    yield seconds
    settle(device)
    seconds.append(time.perf_counter() - start_s)


def repeated(step: Callable[[], Any], amount: float, seconds: float, device: torch.device | None = None) -> Block:
    """A block of as many steps as fit in `seconds`, each doing `amount`."""

    def block() -> Work:
        steps = 0
        with stopwatch(device) as elapsed:
            end_s = time.perf_counter() + seconds
            while not steps or time.perf_counter() < end_s:
                step()
                steps += 1
        return Work(amount * steps, elapsed[0])

    return block


@dataclass(frozen=True)
class Contest:
    """`rates` holds a rate for each contestant and round, in `unit` per second; `warm_up` that of the round before."""

    name: str
    unit: str
    rates: dict[str, list[float]]
    warm_up: dict[str, float]

    @property
    def rounds(self) -> int:
        return min(map(len, self.rates.values()))

    def ratio(self, ours: str, theirs: str) -> Comparison:
        return Comparison.of(self.rates[ours], self.rates[theirs])

    def to_record(self) -> dict[str, Any]:
        return {"name": self.name, "unit": self.unit, "rates": self.rates, "warm_up": self.warm_up}


@dataclass(frozen=True)
class Comparison:
    """`median` and quartiles of the ratio round by round; `mean` over mean with its 95 % interval (Fieller's)."""

    median: float
    low_quartile: float
    high_quartile: float
    mean: Ratio

    @classmethod
    def of(cls, ours: list[float], theirs: list[float]) -> Comparison:
        """Raises ValueError for fewer than two rounds."""
        mean = paired_ratio(ours, theirs)
        low, middle, high = quantiles([a / b for a, b in zip(ours, theirs, strict=True)], method="inclusive")
        return cls(middle, low, high, mean)

    @property
    def interval(self) -> str:
        return f"{self.mean.low:.2f} – {self.mean.high:.2f}"

    @property
    def in_words(self) -> str:
        """`2.21 ± 0.04`: mean over mean, and half its interval."""
        return f"{self.mean.ratio:.2f} ± {(self.mean.high - self.mean.low) / 2:.2f}"

    def to_record(self) -> dict[str, Any]:
        quartiles = [self.low_quartile, self.high_quartile]
        return {"median": self.median, "quartiles": quartiles, "mean_over_mean": self.mean._asdict()}


def in_turn(
    name: str, unit: str, blocks: Mapping[str, Block], rounds: int, until_s: float = NEVER, warm_up: int = 1
) -> Contest:
    """Runs every block once a round. Past `until_s` (time.perf_counter) no third round is begun."""
    warmed: dict[str, float] = {}
    for _ in range(warm_up):
        warmed = {contestant: block().rate for contestant, block in blocks.items()}
    rates: dict[str, list[float]] = {contestant: [] for contestant in blocks}
    for number in range(rounds):
        if number >= 2 and time.perf_counter() > until_s:
            break
        for contestant in list(blocks)[:: -1 if number % 2 else 1]:
            rates[contestant].append(blocks[contestant]().rate)
    return Contest(name, unit, rates, warmed)


def slowest(contest: Contest, contestants: list[str]) -> str:
    """The contestant with the lowest median rate: where a stage has several bounds, the one that binds."""
    return min(contestants, key=lambda contestant: median(contest.rates[contestant]))


HEADER = ["stage", "rate", "bound", "ratio", "quartiles", "95 % of the mean"]


def row(contest: Contest, stage: str, bound: str) -> list[str]:
    """A line of the table under HEADER."""
    found = contest.ratio(stage, bound)
    rate, bound_rate = (f"{median(contest.rates[key]):,.0f} {contest.unit}/s" for key in (stage, bound))
    quartiles = f"{found.low_quartile:.2f} – {found.high_quartile:.2f}"
    return [contest.name, rate, bound_rate, f"{found.median:.2f}", quartiles, found.interval]
