"""Statistics that results are reported with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from toolkit.report.statistics import paired_ratio


def test_the_interval_of_a_ratio_holds_what_a_t_test_accepts():
    rng = np.random.default_rng(0)
    theirs = rng.normal(2.5, 0.4, 8)
    ours = 0.9 * theirs + rng.normal(0, 0.2, 8)
    found = paired_ratio(ours.tolist(), theirs.tolist())
    assert found.ratio == pytest.approx(ours.mean() / theirs.mean())
    assert found.low < found.ratio < found.high
    for ratio in (found.low, found.high):
        assert stats.ttest_1samp(ours - ratio * theirs, 0).pvalue == pytest.approx(0.05)


def test_the_interval_of_a_ratio_covers_the_true_one_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        common = rng.normal(0, 0.5, 8)
        theirs, ours = 2 + common + rng.normal(0, 0.3, 8), 1.6 + common + rng.normal(0, 0.3, 8)
        found = paired_ratio(ours.tolist(), theirs.tolist())
        covered += found.low <= 0.8 <= found.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.03)  # four standard errors


def test_a_ratio_to_what_may_be_nothing_has_no_bounds():
    found = paired_ratio([1.0, 2.0, 3.0], [0.5, -0.4, 0.1])
    assert (found.low, found.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_a_ratio_needs_two_pairs(ours: list[float], theirs: list[float]):
    with pytest.raises(ValueError, match="two pairs"):
        paired_ratio(ours, theirs)
