"""Choosing rows: exact counts, every class kept, chance only where it belongs."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from toolkit.selection import choose
from toolkit.selection.counts import balanced_counts
from toolkit.selection.methods import METHODS

EVERY_WAY = [(method, balance) for method in METHODS for balance in (True, False)]


def random_labels(rng, rows, classes, lopsided):
    """Every class at least once; lopsided ones shrink fast."""
    shares = 0.5 ** np.arange(classes) if lopsided else np.ones(classes)
    drawn = rng.choice(classes, size=rows - classes, p=shares / shares.sum())
    return rng.permutation(np.concatenate([np.arange(classes), drawn]))


def rng_of(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
@pytest.mark.parametrize("lopsided", [False, True])
def test_exactly_the_asked_share_is_kept_and_every_class_with_it(method, balance, lopsided):
    rng, chosen = rng_of(), 0
    for _ in range(300):
        classes = int(rng.integers(1, 12))
        rows = int(rng.integers(classes, 400))
        labels_n, scores_n = random_labels(rng, rows, classes, lopsided), rng.normal(size=rows)
        fraction = float(rng.choice([rng.uniform(0.001, 1), rng.integers(1, 21) / 20]))
        keep = round(fraction * rows)
        if keep < classes:
            with pytest.raises(ValueError, match="left empty"):
                choose(method, labels_n, fraction, rng, scores_n, balance)
            continue
        chosen += 1
        rows_m = choose(method, labels_n, fraction, rng, scores_n, balance)
        assert len(rows_m) == keep
        assert (np.diff(rows_m) > 0).all()
        assert rows_m[0] >= 0
        assert rows_m[-1] < rows
        assert np.array_equal(np.unique(labels_n[rows_m]), np.arange(classes))
    assert chosen > 150


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
def test_the_same_generator_gives_the_same_rows(method, balance):
    labels_n = random_labels(rng_of(), 200, 5, lopsided=True)
    scores_n = rng_of().integers(0, 3, 200).astype(float)  # many ties
    drawn = [choose(method, labels_n, 0.3, rng_of(seed), scores_n, balance).tolist() for seed in (4, 4, 5)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
def test_the_whole_is_the_whole(method, balance):
    labels_n = random_labels(rng_of(), 90, 4, lopsided=True)
    assert np.array_equal(choose(method, labels_n, 1.0, rng_of(), np.zeros(90), balance), np.arange(90))


@pytest.mark.parametrize(("method", "sign"), [("easiest", 1), ("hardest", -1)])
def test_global_choices_are_truly_the_extreme_rows(method, sign):
    rng = rng_of()
    labels_n, scores_n = rng.integers(0, 3, 500), rng.normal(size=500)
    expected = sorted(range(500), key=lambda row: sign * scores_n[row])[:150]
    assert choose(method, labels_n, 0.3, rng, scores_n, balance=False).tolist() == sorted(expected)


@pytest.mark.parametrize(("method", "sign"), [("easiest", 1), ("hardest", -1)])
def test_balanced_choices_are_the_extreme_rows_of_each_class(method, sign):
    rng = rng_of()
    labels_n, scores_n = np.arange(500) % 5, rng.normal(size=500)
    expected = []
    for label in range(5):
        rows = [row for row in range(500) if labels_n[row] == label]
        expected += sorted(rows, key=lambda row: sign * scores_n[row])[:20]
    assert choose(method, labels_n, 0.2, rng, scores_n).tolist() == sorted(expected)


def test_a_class_the_ranking_drops_keeps_its_first_row_at_the_cost_of_the_last():
    labels_n = np.array([0] * 6 + [1] * 3 + [2])
    scores_n = np.array([9, 8, 7, 6, 5, 4, 1, 3, 2, 0.0])
    rows_m = choose("hardest", labels_n, 0.5, rng_of(), scores_n, balance=False)
    assert rows_m.tolist() == [0, 1, 2, 7, 9]  # rows 4 and 3 make room for the hardest of classes 1 and 2


@pytest.mark.parametrize("method", ["easiest", "hardest"])
@pytest.mark.parametrize("balance", [True, False])
def test_ties_are_broken_at_random(method, balance):
    labels_n, draws = np.repeat(np.arange(10), 20), 400  # ordered by class: by position, only the first would stay
    times_n = np.zeros(200)
    for seed in range(draws):
        times_n[choose(method, labels_n, 0.25, rng_of(seed), np.zeros(200), balance)] += 1
    assert np.abs(times_n - 0.25 * draws).max() < 4.5 * math.sqrt(draws * 0.25 * 0.75)


def test_random_rows_are_equally_likely():
    times_n, draws = np.zeros(60), 600
    for seed in range(draws):
        times_n[choose("random", np.arange(60) % 2, 0.2, rng_of(seed), balance=False)] += 1
    assert np.abs(times_n - 0.2 * draws).max() < 4.5 * math.sqrt(draws * 0.2 * 0.8)


def test_random_needs_no_score_and_ignores_one():
    labels_n = np.arange(100) % 4
    without = choose("random", labels_n, 0.2, rng_of())
    assert np.array_equal(without, choose("random", labels_n, 0.2, rng_of(), rng_of(9).normal(size=100)))


def largest_remainders(sizes, keep):
    """In exact fractions; equal remainders go to the lower label."""
    exact = [Fraction(keep * size, sum(sizes)) for size in sizes]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda label: (counts[label] - exact[label], label))
    for label in by_remainder[: keep - sum(counts)]:
        counts[label] += 1
    return counts


def test_balanced_counts_are_the_largest_remainders():
    rng, without_lifting = rng_of(), 0
    for _ in range(500):
        sizes = rng.integers(1, 30, size=rng.integers(1, 8))
        keep = int(rng.integers(len(sizes), sizes.sum() + 1))
        labels_n = np.repeat(np.arange(len(sizes)), sizes)
        counts = list(balanced_counts(labels_n, keep).values())
        exact = keep * sizes / sizes.sum()
        assert sum(counts) == keep
        assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
        if exact.min() >= 1:
            without_lifting += 1
            assert np.abs(counts - exact).max() < 1
            assert counts == largest_remainders(sizes.tolist(), keep)
    assert without_lifting > 100


def test_equal_remainders_go_to_the_lower_label():
    labels_n = np.repeat([0, 1, 2], [4, 7, 7])
    assert balanced_counts(labels_n, 6) == {0: 2, 1: 2, 2: 2}  # exact shares 4/3, 7/3, 7/3


def test_a_class_too_small_for_its_share_is_lifted_to_one_row():
    labels_n = np.repeat([3, 5, 8], [96, 3, 1])
    assert balanced_counts(labels_n, 10) == {3: 8, 5: 1, 8: 1}


def test_labels_need_not_be_consecutive():
    labels_n = np.repeat([-4, 10, 1000], 30)
    for method, balance in EVERY_WAY:
        kept = labels_n[choose(method, labels_n, 0.1, rng_of(), np.arange(90.0), balance)]
        assert set(kept.tolist()) == {-4, 10, 1000}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, 2, math.nan, math.inf, -math.inf])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ValueError, match="--frac must be above 0 and at most 1"):
        choose("random", np.arange(100) % 4, fraction, rng_of())


@pytest.mark.parametrize(("rows", "classes"), [(100, 10), (1000, 7), (60_000, 10), (333, 331), (12_345, 1000)])
def test_a_fraction_that_empties_a_class_is_refused_with_one_that_does_not(rows, classes):
    labels_n = np.arange(rows) % classes
    with pytest.raises(ValueError, match="left empty") as refusal:
        choose("random", labels_n, (classes - 1) / rows, rng_of())
    advised = float(re.search(r"Use --frac (\S+) or more", str(refusal.value)).group(1))
    kept = choose("random", labels_n, advised, rng_of())
    assert np.array_equal(np.unique(labels_n[kept]), np.arange(classes))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_score])
def test_a_score_that_is_no_number_is_refused_with_its_row(method, bad):
    scores_n = np.zeros(100)
    scores_n[37] = bad
    with pytest.raises(ValueError, match="row 37"):
        choose(method, np.arange(100) % 4, 0.5, rng_of(), scores_n)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.needs_score])
def test_a_missing_score_is_refused(method):
    with pytest.raises(ValueError, match="needs a score"):
        choose(method, np.arange(100) % 4, 0.5, rng_of())


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
@pytest.mark.parametrize("scores", [99, 101])
def test_scores_of_other_rows_than_the_labels_are_refused(method, balance, scores):
    with pytest.raises(ValueError, match=f"{scores} scores for 100 labels"):
        choose(method, np.arange(100) % 4, 0.5, rng_of(), np.zeros(scores), balance)


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="hardest"):
        choose("herding", np.arange(100) % 4, 0.5, rng_of())
