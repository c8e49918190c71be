"""Choosing rows: exact counts, every class kept, chance only where it belongs."""

import itertools
import math
import re
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from toolkit import selection
from toolkit.scores import DYNAMICS, FEATURES, SCORES
from toolkit.selection import checked, choose
from toolkit.selection.counts import balanced_counts, nested_counts
from toolkit.selection.methods import METHODS, Method
from toolkit.selection.pool import How, Picked, Pool

EVERY_WAY = [(method, balance) for method in METHODS for balance in (True, False)]
PICKS = [name for name, method in METHODS.items() if method.pick is not None]
NEEDS = [(name, need) for name, method in METHODS.items() for need in method.needs]


def random_labels(rng, rows, classes, lopsided):
    """Every class at least once; lopsided ones shrink fast."""
    shares = 0.5 ** np.arange(classes) if lopsided else np.ones(classes)
    drawn = rng.choice(classes, size=rows - classes, p=shares / shares.sum())
    return rng.permutation(np.concatenate([np.arange(classes), drawn]))


def pool_of(labels_n, rng, kinds=None):
    """A pool with everything; of `kinds` different rows, so that the others are ties."""
    rows, classes = len(labels_n), int(labels_n.max()) + 1
    kind_n = np.arange(rows) if kinds is None else rng.integers(0, kinds, rows)
    count = rows if kinds is None else kinds
    features_nd = rng.normal(size=(count, 5))[kind_n] + (0 if kinds else 1) * labels_n[:, None]
    logits_nc = 2 * rng.normal(size=(count, classes))[kind_n]
    scores_n = rng.normal(size=count)[kind_n]
    return Pool(labels_n, scores_n, features_nd.astype(np.float16), logits_nc.astype(np.float16))


def rng_of(seed=0):
    return np.random.default_rng(seed)


def rows_of(method, pool, fraction, rng, **settings):
    return choose(method, pool, fraction, rng, **settings).rows_m


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
@pytest.mark.parametrize("lopsided", [False, True])
def test_exactly_the_asked_share_is_kept_and_every_class_with_it(method, balance, lopsided):
    rng, chosen, trials = rng_of(), 0, 300 if METHODS[method].rank else 24
    for _ in range(trials):
        classes, least = int(rng.integers(1, 9)), int(rng.choice([1, 1, 3]))
        rows = int(rng.integers(classes, 150))
        pool = pool_of(random_labels(rng, rows, classes, lopsided), rng)
        sizes = np.bincount(pool.labels_n)
        fraction = float(rng.choice([rng.uniform(0.001, 1), rng.integers(1, 21) / 20]))
        settings = {"balance": balance, "nested": bool(rng.integers(2)), "min_per_class": least}
        if round(fraction * rows) < np.minimum(sizes, least).sum():
            with pytest.raises(ValueError, match="fewer than the"):
                choose(method, pool, fraction, rng, **settings)
            continue
        chosen += 1
        rows_m, weights_m = choose(method, pool, fraction, rng, **settings)
        assert len(rows_m) == round(fraction * rows)
        assert (np.diff(rows_m) > 0).all()
        assert 0 <= rows_m[0] <= rows_m[-1] < rows
        assert (np.bincount(pool.labels_n[rows_m], minlength=classes) >= np.minimum(sizes, least)).all()
        if weights_m is not None:
            assert METHODS[method].weighted
            assert weights_m.shape == rows_m.shape
            assert (weights_m >= 0).all()
            assert math.isclose(weights_m.mean(), 1)
    assert chosen > trials / 3


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
def test_the_same_seed_gives_the_same_rows_and_another_others(method, balance):
    pool = pool_of(random_labels(rng_of(), 200, 5, lopsided=True), rng_of(), kinds=3)  # many ties
    drawn = [choose(method, pool, 0.3, rng_of(seed), balance=balance) for seed in (4, 4, 5)]
    assert np.array_equal(drawn[0].rows_m, drawn[1].rows_m)
    assert (drawn[0].weights_m is None) or np.array_equal(drawn[0].weights_m, drawn[1].weights_m)
    assert not np.array_equal(drawn[0].rows_m, drawn[2].rows_m)


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
def test_the_whole_is_the_whole(method, balance):
    pool = pool_of(random_labels(rng_of(), 90, 4, lopsided=True), rng_of())
    assert np.array_equal(rows_of(method, pool, 1.0, rng_of(), balance=balance), np.arange(90))


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
@pytest.mark.parametrize("least", [1, 4])
def test_nested_choices_of_smaller_fractions_lie_in_larger_ones(method, balance, least):
    pool = pool_of(random_labels(rng_of(2), 160, 6, lopsided=True), rng_of(2))
    smaller = set()
    for fraction in (0.13, 0.15, 0.16, 0.2, 0.3, 0.5, 0.51, 0.8, 1.0):
        larger = rows_of(method, pool, fraction, rng_of(7), balance=balance, nested=True, min_per_class=least)
        assert len(larger) == round(fraction * 160)
        assert smaller <= set(larger.tolist())
        smaller = set(larger.tolist())


@pytest.mark.parametrize("method", PICKS)
@pytest.mark.parametrize("classes", [1, 4])
def test_fewer_picks_are_the_beginning_of_more(method, classes):
    pool = pool_of(np.arange(120) % classes, rng_of(), kinds=80)
    pool = Pool(pool.labels_n, pool.scores_n, pool.features_nd, 2 * rng_of(1).normal(size=(120, 4)))
    whole = METHODS[method].pick(pool, 120, rng_of(3), How()).rows_m
    assert sorted(whole.tolist()) == list(range(120))
    for keep in (1, 2, 7, 40, 119):
        picked = METHODS[method].pick(pool, keep, rng_of(3), How())
        assert np.array_equal(picked.rows_m, whole[:keep])
        assert picked.rows_m.dtype == np.int64


@pytest.mark.parametrize("method", PICKS)
@pytest.mark.parametrize("balance", [True, False])
def test_progress_adds_up_to_the_rows_picked(method, balance):
    pool, told = pool_of(np.arange(400) % 2, rng_of()), []
    choose(method, pool, 0.9, rng_of(), How(tick=told.append), balance=balance, nested=True, min_per_class=30)
    assert sum(told) == 360


@pytest.mark.parametrize(("method", "balance"), EVERY_WAY)
def test_ties_are_broken_at_random(method, balance):
    # Ordered by class: by position, only the first rows would stay. Globally, classes may well not be alike.
    labels_n, draws = np.repeat(np.arange(3 if balance else 1), 20 if balance else 60), 150
    pool, times_n = Pool(labels_n, np.zeros(60), np.ones((60, 4)), np.ones((60, 3))), np.zeros(60)
    for seed in range(draws):
        times_n[rows_of(method, pool, 0.25, rng_of(seed), balance=balance)] += 1
    assert np.abs(times_n - 0.25 * draws).max() < 4.5 * math.sqrt(draws * 0.25 * 0.75)


# Of the rows this kdtool chose before it had other methods: subsets made then can be made again.
@pytest.mark.parametrize(
    ("method", "balance", "checksum"),
    [
        ("random", True, 1185552488),
        ("random", False, 126544962),
        ("hardest", True, 2615281592),
        ("hardest", False, 4240196588),
        ("easiest", True, 2298550259),
        ("easiest", False, 2212176554),
    ],
)
def test_rows_of_earlier_subsets_stay_the_same(method, balance, checksum):
    labels_n = np.arange(1000) % 7
    pool = Pool(labels_n, rng_of(3).integers(0, 40, 1000) - 5.0 * labels_n)
    assert zlib.crc32(rows_of(method, pool, 0.137, rng_of(5), balance=balance).tobytes()) == checksum


@pytest.mark.parametrize(("method", "sign"), [("easiest", 1), ("hardest", -1)])
def test_global_choices_are_truly_the_extreme_rows(method, sign):
    rng = rng_of()
    pool = Pool(rng.integers(0, 3, 500), rng.normal(size=500))
    expected = sorted(range(500), key=lambda row: sign * pool.scores_n[row])[:150]
    assert rows_of(method, pool, 0.3, rng, balance=False).tolist() == sorted(expected)


@pytest.mark.parametrize(("method", "sign"), [("easiest", 1), ("hardest", -1)])
def test_balanced_choices_are_the_extreme_rows_of_each_class(method, sign):
    pool, expected = Pool(np.arange(500) % 5, rng_of().normal(size=500)), []
    for label in range(5):
        rows = [row for row in range(500) if pool.labels_n[row] == label]
        expected += sorted(rows, key=lambda row: sign * pool.scores_n[row])[:20]
    assert rows_of(method, pool, 0.2, rng_of()).tolist() == sorted(expected)


LAST_TWO = Pool(np.array([0] * 6 + [1] * 3 + [2]), np.array([9, 8, 7, 6, 5, 4, 1, 3, 2, 0.0]))


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_the_ranking_drops_keeps_its_first_row_at_the_cost_of_the_last(nested):
    rows_m = rows_of("hardest", LAST_TWO, 0.5, rng_of(), balance=False, nested=nested)
    assert rows_m.tolist() == [0, 1, 2, 7, 9]  # rows 4 and 3 make room for the hardest of classes 1 and 2


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_below_the_minimum_gets_its_best_rows_or_all_it_has(nested):
    rows_m = rows_of("hardest", LAST_TWO, 0.6, rng_of(), balance=False, nested=nested, min_per_class=2)
    assert rows_m.tolist() == [0, 1, 2, 7, 8, 9]


def repaired(ranked, labels, keep, least):
    """One missing row at a time, its place searched from the end each time."""
    kept = ranked[:keep]
    for label in sorted(set(labels)):
        best = [row for row in ranked if labels[row] == label]
        for row in best[:least]:
            if row in kept:
                continue
            held = {other: sum(labels[k] == other for k in kept) for other in set(labels)}
            place = max(p for p in range(keep) if held[labels[kept[p]]] > min(least, labels.count(labels[kept[p]])))
            kept[place] = row
    return sorted(kept)


def test_global_minima_are_repaired_as_one_row_at_a_time_would_be():
    rng, repairs = rng_of(), 0
    for _ in range(150):
        labels_n = random_labels(rng, int(rng.integers(10, 60)), 6, lopsided=True)
        pool, least = Pool(labels_n, rng.normal(size=len(labels_n)) - labels_n), int(rng.integers(1, 5))
        keep = int(rng.integers(np.minimum(np.bincount(labels_n), least).sum(), len(labels_n) + 1))
        rows_m = rows_of("hardest", pool, keep / len(labels_n), rng, balance=False, min_per_class=least)
        ranked = np.argsort(-pool.scores_n).tolist()
        assert rows_m.tolist() == repaired(ranked, labels_n.tolist(), keep, least)
        repairs += rows_m.tolist() != sorted(ranked[:keep])
    assert repairs > 50


def first_rows(weigh):
    """A method that picks the first rows of its pool, weighed by their scores."""
    return Method("", ("scores",), "", pick=lambda pool, keep, rng, how: Picked(np.arange(keep), weigh(pool, keep)))


def test_balanced_weights_are_the_rows_own_and_of_mean_one_in_each_class(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", first_rows(lambda pool, keep: pool.scores_n[:keep]))
    labels_n = np.array([0, 1, 0, 1, 0, 1, 2, 2])
    picked = choose("mine", Pool(labels_n, np.array([1.0, 10, 3, 30, 9, 9, 0, 5])), 0.75, rng_of())
    assert picked.rows_m.tolist() == [0, 1, 2, 3, 6, 7]
    assert np.allclose(picked.weights_m, [0.5, 0.5, 1.5, 1.5, 0, 2])


def test_global_weights_of_repaired_rows_are_one_and_the_others_mean_one(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", first_rows(lambda pool, keep: pool.scores_n[:keep]))
    pool = Pool(np.array([0, 0, 0, 0, 1, 1]), np.array([1.0, 3, 8, 8, 50, 50]))
    for nested in (False, True):
        picked = choose("mine", pool, 0.5, rng_of(), balance=False, nested=nested)
        assert picked.rows_m.tolist() == [0, 1, 4]
        assert np.allclose(picked.weights_m, [0.5, 1.5, 1])


def test_weights_that_are_all_zero_say_nothing(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", first_rows(lambda pool, keep: np.zeros(keep)))
    assert choose("mine", Pool(np.arange(6) % 2, np.ones(6)), 0.5, rng_of()).weights_m.tolist() == [1, 1, 1]


def test_random_rows_are_equally_likely():
    times_n, draws = np.zeros(60), 600
    for seed in range(draws):
        times_n[rows_of("random", Pool(np.arange(60) % 2), 0.2, rng_of(seed), balance=False)] += 1
    assert np.abs(times_n - 0.2 * draws).max() < 4.5 * math.sqrt(draws * 0.2 * 0.8)


def test_random_needs_no_score_and_ignores_one():
    labels_n = np.arange(100) % 4
    without = rows_of("random", Pool(labels_n), 0.2, rng_of())
    assert np.array_equal(without, rows_of("random", Pool(labels_n, rng_of(9).normal(size=100)), 0.2, rng_of()))


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
        sizes, asked = rng.integers(1, 30, size=rng.integers(1, 8)), int(rng.choice([1, 1, 5]))
        least = np.minimum(sizes, asked)
        keep = int(rng.integers(least.sum(), sizes.sum() + 1))
        counts = list(balanced_counts(np.repeat(np.arange(len(sizes)), sizes), keep, asked).values())
        exact = keep * sizes / sizes.sum()
        assert sum(counts) == keep
        assert all(low <= count <= size for low, count, size in zip(least, counts, sizes, strict=True))
        if (exact >= least).all():
            without_lifting += 1
            assert np.abs(counts - exact).max() < 1
            assert counts == largest_remainders(sizes.tolist(), keep)
    assert without_lifting > 100


def test_equal_remainders_go_to_the_lower_label():
    labels_n = np.repeat([0, 1, 2], [4, 7, 7])
    assert balanced_counts(labels_n, 6) == {0: 2, 1: 2, 2: 2}  # exact shares 4/3, 7/3, 7/3


def test_a_class_too_small_for_its_share_is_lifted_to_the_minimum():
    labels_n = np.repeat([3, 5, 8], [96, 3, 1])
    assert balanced_counts(labels_n, 10) == {3: 8, 5: 1, 8: 1}
    assert balanced_counts(labels_n, 10, min_per_class=3) == {3: 6, 5: 3, 8: 1}


def highest_averages(sizes, keep, least):
    """Webster's method seat by seat, in exact fractions."""
    counts = [min(size, least) for size in sizes]
    while sum(counts) < keep:
        ratios = [Fraction(2 * size, 2 * count + 1) for size, count in zip(sizes, counts, strict=True)]
        counts[ratios.index(max(ratios))] += 1
    return counts


def test_nested_counts_are_websters_and_never_fall():
    rng = rng_of()
    for _ in range(40):
        sizes, least = rng.integers(1, 30, size=rng.integers(1, 8)).tolist(), int(rng.integers(1, 4))
        labels_n = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
        before = [0] * len(sizes)
        for keep in range(sum(min(size, least) for size in sizes), sum(sizes) + 1):
            counts = list(nested_counts(labels_n, keep, least).values())
            assert counts == highest_averages(sizes, keep, least)
            assert all(old <= new <= size for old, new, size in zip(before, counts, sizes, strict=True))
            before = counts
        assert before == sizes


def test_largest_remainders_would_take_rows_back():
    labels_n = np.repeat([0, 1, 2], [6, 6, 2])
    assert [balanced_counts(labels_n, keep)[2] for keep in (10, 11)] == [2, 1]
    assert [nested_counts(labels_n, keep)[2] for keep in (10, 11, 12)] == [1, 1, 2]


def test_labels_need_not_be_consecutive():
    labels_n = np.repeat([-4, 10, 1000], 30)
    pool = Pool(labels_n, np.arange(90.0), rng_of().normal(size=(90, 4)))
    for method, balance in EVERY_WAY:
        if "logits" not in METHODS[method].needs:  # there, labels are columns
            for nested in (False, True):
                kept = labels_n[rows_of(method, pool, 0.1, rng_of(), balance=balance, nested=nested)]
                assert set(kept.tolist()) == {-4, 10, 1000}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.0001, 2, math.nan, math.inf, -math.inf])
def test_fractions_outside_0_to_1_are_refused(fraction):
    with pytest.raises(ValueError, match="--frac must be above 0 and at most 1"):
        choose("random", Pool(np.arange(100) % 4), fraction, rng_of())


@pytest.mark.parametrize("least", [0, -3])
def test_minima_below_one_are_refused(least):
    with pytest.raises(ValueError, match=f"--min-per-class must be at least 1, got {least}"):
        choose("random", Pool(np.arange(100) % 4), 0.5, rng_of(), min_per_class=least)


@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize(("rows", "classes"), [(100, 10), (1000, 7), (60_000, 10), (333, 331), (12_345, 1000)])
def test_a_fraction_that_keeps_too_few_is_refused_with_one_that_does_not(rows, classes, least, balance):
    labels_n = np.arange(rows) % classes
    needed = int(np.minimum(np.bincount(labels_n), least).sum())
    settings = {"balance": balance, "min_per_class": least}
    match = "left empty" if least == 1 else "or a lower --min-per-class"
    with pytest.raises(ValueError, match=match) as refusal:
        choose("random", Pool(labels_n), (needed - 1) / rows, rng_of(), **settings)
    advised = float(re.search(r"Use --frac (\d[.\d]*) or more", str(refusal.value)).group(1))
    kept = rows_of("random", Pool(labels_n), advised, rng_of(), **settings)
    assert (np.bincount(labels_n[kept]) >= np.minimum(np.bincount(labels_n), least)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("method", "need"), NEEDS)
def test_what_is_no_number_is_refused_with_its_row(method, need, bad):
    pool = pool_of(np.arange(9000) % 4, rng_of())
    array = {"scores": pool.scores_n, "features": pool.features_nd, "logits": pool.logits_nc}[need]
    array[8500, ...] = bad
    with pytest.raises(ValueError, match=f"--method {method} needs finite {need}: those of row 8500 are not"):
        choose(method, pool, 0.5, rng_of())


def test_a_checked_pool_is_not_read_again_for_what_it_was_checked_for(monkeypatch):
    pool, read = pool_of(np.arange(100) % 4, rng_of()), []
    look = selection._first_not_finite
    monkeypatch.setattr(selection, "_first_not_finite", lambda array: read.append(array) or look(array))
    known = checked(["herding", "cal", "d2"], pool)
    for method, fraction in itertools.product(("herding", "cal", "d2", "hardest"), (0.1, 0.5)):
        choose(method, known, fraction, rng_of())
    given = (pool.features_nd, pool.logits_nc, pool.scores_n)
    assert [id(array) for array in read] == [id(array) for array in given]


def test_a_pool_checked_for_one_method_is_still_checked_for_another():
    pool = pool_of(np.arange(100) % 4, rng_of())
    pool.logits_nc[7] = math.nan
    known = checked(["random", "herding"], pool)
    with pytest.raises(ValueError, match="--method cal needs finite logits: those of row 7 are not"):
        choose("cal", known, 0.5, rng_of())
    with pytest.raises(ValueError, match="--method cal needs finite logits: those of row 7 are not"):
        checked(["herding", "cal"], pool)


@pytest.mark.parametrize(("method", "need"), NEEDS)
def test_a_missing_need_is_refused_with_the_option_that_gives_it(method, need):
    pool = pool_of(np.arange(100) % 4, rng_of())
    given = {"scores": pool.scores_n, "features": pool.features_nd, "logits": pool.logits_nc} | {need: None}
    option = "--score" if need == "scores" else "--teacher"
    with pytest.raises(ValueError, match=f"--method {method} needs {need}: .*{option}"):
        choose(method, Pool(pool.labels_n, given["scores"], given["features"], given["logits"]), 0.5, rng_of())


@pytest.mark.parametrize("rows", [99, 101])
def test_arrays_of_other_rows_than_the_labels_are_refused(rows):
    with pytest.raises(ValueError, match=f"scores of {rows} rows for 100 labels"):
        choose("random", Pool(np.arange(100) % 4, np.zeros(rows)), 0.5, rng_of())
    with pytest.raises(ValueError, match=f"features of {rows} rows for 100 labels"):
        choose("herding", Pool(np.arange(100) % 4, None, np.zeros((rows, 2))), 0.5, rng_of())


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="hardest"):
        choose("softest", Pool(np.arange(100) % 4), 0.5, rng_of())
    with pytest.raises(ValueError, match="hardest"):
        checked(["softest"], Pool(np.arange(100) % 4))


@pytest.mark.parametrize("setting", [{"center": -0.1}, {"center": 1.1}, {"center": math.nan}])
def test_centers_that_are_no_quantile_are_refused(setting):
    with pytest.raises(ValueError, match="--center must be from 0"):
        How(**setting)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_dropping_all_rows_is_refused(share):
    with pytest.raises(ValueError, match="--drop-hardest must be at least 0 and below 1"):
        How(drop_hardest=share)


def test_the_docs_name_every_method_and_every_score():
    page = (Path(__file__).parent.parent / "docs" / "pipeline.md").read_text()
    part = page[page.index("## Which rows?") : page.index("## How small?")]
    for name in [*METHODS, *SCORES, *FEATURES, *DYNAMICS]:
        assert f"`{name}`" in part or f"`{name}@E`" in part, name
