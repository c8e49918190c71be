"""Selection by scores alone: windows, and strata of the score's range."""

import math

import numpy as np
import pytest

from toolkit.selection.pool import How, Pool
from toolkit.selection.ranking import STRATA, stratified, window


def rng_of(seed=0):
    return np.random.default_rng(seed)


def scored(scores_n):
    return Pool(np.zeros(len(scores_n), int), np.asarray(scores_n, float))


@pytest.mark.parametrize("center", [0, 0.05, 0.3, 0.5, 0.77, 1])
def test_a_window_is_neighbours_in_the_order_of_the_score(center):
    rows = 101
    place_n = rng_of(1).permutation(rows)  # row → its place in the order of the score
    for keep in (1, 2, 10, 60, 100, 101):
        picked = window(scored(place_n**3), keep, rng_of(), How(center=center)).rows_m
        places = sorted(place_n[picked].tolist())
        assert places == list(range(places[0], places[0] + keep))
        middle = (places[0] + places[-1] + 1) / 2 / rows
        held = min(max(center, keep / 2 / rows), 1 - keep / 2 / rows)  # a window at an end ends there
        assert abs(middle - held) <= 0.5 / rows + 1e-9


def test_a_window_at_an_end_is_the_extreme_rows():
    scores_n = rng_of(2).normal(size=50)
    by_score = np.argsort(scores_n)
    assert window(scored(scores_n), 50, rng_of(), How(center=0)).rows_m.tolist() == by_score.tolist()
    assert window(scored(scores_n), 50, rng_of(), How(center=1)).rows_m.tolist() == by_score[::-1].tolist()


@pytest.mark.parametrize(("rows", "center"), [(10, 0.5), (10, 0.3), (60, 0.7), (6000, 0.35)])
def test_of_two_rows_equally_near_the_center_either_comes_first(rows, center):
    drawn = {int(window(scored(np.arange(rows)), 1, rng_of(seed), How(center=center)).rows_m[0]) for seed in range(40)}
    assert drawn == {round(center * rows) - 1, round(center * rows)}


def algorithm_1(scores, budget, drop, strata):
    """Budgets as the paper's Algorithm 1 has them, as plainly as can be: {stratum: (its rows, its budget)}."""
    order = sorted(range(len(scores)), key=lambda row: -scores[row])
    rest = order[math.floor(drop * len(scores)) :]
    low, high = min(scores[row] for row in rest), max(scores[row] for row in rest)
    width = (high - low) / strata
    bins = {}
    for row in rest:
        bins.setdefault(min(int((scores[row] - low) / width), strata - 1), []).append(row)
    waiting, budgets, left = dict(bins), {}, budget
    while waiting:
        smallest = min(waiting, key=lambda key: len(waiting[key]))
        budgets[smallest] = min(len(waiting[smallest]), left // len(waiting))
        left -= budgets[smallest]
        del waiting[smallest]
    return {key: (bins[key], budgets[key]) for key in bins}


@pytest.mark.parametrize("drop", [0, 0.1, 0.25])
def test_strata_get_the_budgets_of_the_papers_algorithm(drop):
    for seed, draw in enumerate([rng_of().exponential, rng_of().normal, rng_of().random] * 4):
        scores_n = draw(size=400)
        for keep in (1, 30, 49, 50, 51, 77, 160, 299, 300):
            picked = set(stratified(scored(scores_n), keep, rng_of(seed), How(drop_hardest=drop)).rows_m.tolist())
            expected = algorithm_1(scores_n.tolist(), keep, drop, STRATA)
            held = {key: len(picked & set(rows)) for key, (rows, _) in expected.items()}
            assert sum(held.values()) == keep
            assert all(abs(held[key] - budget) <= 1 for key, (_, budget) in expected.items())
            # the same numbers, up to which strata give one more
            assert sorted(held.values()) == sorted(budget for _, budget in expected.values())


def test_rows_of_a_stratum_are_equally_likely():
    scores_n, draws, times_n = np.repeat([0.0, 1.0], [40, 10]), 800, np.zeros(50)
    for seed in range(draws):
        times_n[stratified(scored(scores_n), 10, rng_of(seed), How(drop_hardest=0)).rows_m] += 1
    share_n = np.repeat([5 / 40, 5 / 10], [40, 10])
    assert (np.abs(times_n - share_n * draws) < 4.5 * np.sqrt(draws * share_n * (1 - share_n))).all()


def test_the_hardest_come_only_when_nothing_else_is_left_easiest_of_them_first():
    scores_n = rng_of(5).permutation(100).astype(float)
    picked = stratified(scored(scores_n), 100, rng_of(), How(drop_hardest=0.29)).rows_m
    assert scores_n[picked[:71]].max() == 70
    assert scores_n[picked[71:]].tolist() == list(range(71, 100))


def test_equal_scores_are_one_stratum():
    assert sorted(stratified(scored(np.ones(30)), 30, rng_of(), How()).rows_m.tolist()) == list(range(30))


def test_one_row_is_never_dropped():
    assert stratified(scored([3.0]), 1, rng_of(), How(drop_hardest=1 - 1e-12)).rows_m.tolist() == [0]
