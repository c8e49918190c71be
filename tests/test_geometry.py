"""Selection by geometry: against plain loops in float64, bounds from the papers, and rows mapped from disk."""

import itertools
import math

import numpy as np
import pytest

from toolkit.selection import choose
from toolkit.selection.geometry import contextual_diversity, herding, k_center, moderate
from toolkit.selection.pool import How, Pool

METHODS = {"moderate": moderate, "herding": herding, "k-center": k_center, "contextual-diversity": contextual_diversity}


def rng_of(seed=0):
    return np.random.default_rng(seed)


def pool_of(rows, seed=0, d=6, classes=1, offset=3.0):
    """Features far from the origin, as those behind a ReLU are; logits of five classes."""
    rng = rng_of(seed)
    labels_n = rng.integers(0, classes, rows)
    features_nd = rng.normal(size=(rows, d)) + offset + 2 * labels_n[:, None]
    return Pool(labels_n, None, features_nd.astype(np.float32), (3 * rng.normal(size=(rows, 5))).astype(np.float32))


def herded_by_loops(features, keep):
    """Each pick is the row that brings the mean of the rows so far nearest to the mean of all."""
    mean, picked, total = features.mean(axis=0), [], np.zeros(features.shape[1])
    for count in range(1, keep + 1):
        left = [row for row in range(len(features)) if row not in picked]
        picked.append(min(left, key=lambda row: np.linalg.norm(mean - (total + features[row]) / count)))
        total += features[picked[-1]]
    return picked


def farthest_by_loops(distance, rows, keep, first):
    picked = [first]
    while len(picked) < keep:
        left = [row for row in range(rows) if row not in picked]
        picked.append(max(left, key=lambda row: min(distance(row, other) for other in picked)))
    return picked


@pytest.mark.parametrize("seed", range(5))
def test_herding_brings_the_running_mean_nearest(seed):
    pool = pool_of(40, seed)
    picked = herding(pool, 40, rng_of(seed), How()).rows_m
    # the last few are what is left: there float32 and float64 may part
    assert picked[:30].tolist() == herded_by_loops(pool.features_nd.astype(np.float64), 30)


@pytest.mark.parametrize("seed", range(3))
def test_herding_of_equally_long_rows_is_wellings(seed):
    features_nd = rng_of(seed).normal(size=(50, 8)) + 1
    features_nd /= np.linalg.norm(features_nd, axis=1, keepdims=True)
    mean, picked = features_nd.mean(axis=0), []
    w = mean.copy()
    for _ in range(25):
        value = features_nd @ w
        value[picked] = -np.inf
        picked.append(int(value.argmax()))
        w += mean - features_nd[picked[-1]]
    assert herding(Pool(np.zeros(50, int), None, features_nd), 25, rng_of(), How()).rows_m.tolist() == picked


def test_herdings_mean_error_falls_as_one_over_the_picks_and_randoms_as_its_root():
    features_nd = pool_of(4000, d=8).features_nd
    mean = features_nd.mean(axis=0)

    def error(rows_m):
        return np.linalg.norm(features_nd[rows_m].mean(axis=0) - mean)

    order = herding(Pool(np.zeros(4000, int), None, features_nd), 400, rng_of(), How()).rows_m
    herded = {keep: error(order[:keep]) for keep in (10, 25, 50, 100, 200, 400)}
    assert max(keep * err for keep, err in herded.items()) < 2  # ‖Σ (picked − mean)‖ stays bounded
    assert all(herded[keep] < error(rng_of(1).permutation(4000)[:keep]) / 2 for keep in herded)


@pytest.mark.parametrize("seed", range(5))
def test_k_center_takes_the_farthest_row(seed):
    pool = pool_of(40, seed)
    x_nd = pool.features_nd.astype(np.float64)
    picked = k_center(pool, 25, rng_of(seed), How()).rows_m.tolist()
    assert picked == farthest_by_loops(lambda a, b: np.linalg.norm(x_nd[a] - x_nd[b]), 40, 25, picked[0])


def radius(x_nd, centers):
    return max(min(np.linalg.norm(x - x_nd[center]) for center in centers) for x in x_nd)


@pytest.mark.parametrize("seed", range(8))
def test_k_centers_radius_is_at_most_twice_the_best(seed):
    x_nd = rng_of(seed).normal(size=(11, 2))
    for keep in (1, 2, 3, 4):
        best = min(radius(x_nd, centers) for centers in itertools.combinations(range(11), keep))
        picked = k_center(Pool(np.zeros(11, int), None, x_nd), keep, rng_of(seed), How()).rows_m
        assert radius(x_nd, picked) <= 2 * best * (1 + 1e-5)


def radius_by_differences(x_nd, picked):
    nearest_n = np.full(len(x_nd), np.inf)
    for row in picked:
        nearest_n = np.minimum(nearest_n, ((x_nd - x_nd[row]) ** 2).sum(axis=1))
    return math.sqrt(nearest_n.max())


@pytest.mark.parametrize("offset", [0, 3])
def test_k_centers_radius_within_tight_clusters_is_that_of_exact_distances(offset):
    rng = rng_of(1)
    centres_nd = 10 * rng.normal(size=(20, 64))[rng.integers(0, 20, 1200)] + offset
    x_nd = (centres_nd + 1e-3 * rng.normal(size=(1200, 64))).astype(np.float32)
    picked = k_center(Pool(np.zeros(1200, int), None, x_nd), 200, rng_of(), How()).rows_m
    x_nd = x_nd.astype(np.float64)
    exact, nearest_n = [int(picked[0])], np.full(1200, np.inf)
    while len(exact) < 200:
        nearest_n = np.minimum(nearest_n, ((x_nd - x_nd[exact[-1]]) ** 2).sum(axis=1))
        exact.append(int(nearest_n.argmax()))
    assert radius_by_differences(x_nd, picked) == pytest.approx(radius_by_differences(x_nd, exact), rel=1e-3)


def test_contextual_diversity_tells_rows_apart_that_say_nearly_the_same():
    rng = rng_of(2)
    kind_n = rng.integers(0, 3, 120)  # sure of one of three classes, and told apart by little
    logits_nc = (12 * np.eye(3)[kind_n] + 0.01 * rng.normal(size=(120, 3))).astype(np.float32)
    log_nc = logits_nc.astype(np.float64)
    log_nc -= np.log(np.exp(log_nc).sum(axis=1, keepdims=True))
    p_nc = np.exp(log_nc)

    def distance(a, b):
        return ((p_nc[a] - p_nc[b]) * (log_nc[a] - log_nc[b])).sum()

    picked = contextual_diversity(Pool(np.zeros(120, int), None, None, logits_nc), 30, rng_of(), How()).rows_m.tolist()
    exact = farthest_by_loops(distance, 120, 30, picked[0])

    def radius_of(rows):
        return max(min(distance(row, other) for other in rows) for row in range(120))

    assert radius_of(picked) == pytest.approx(radius_of(exact), rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_contextual_diversity_takes_the_row_of_largest_symmetric_divergence(seed):
    pool = pool_of(40, seed)
    p_nc = np.exp(pool.logits_nc.astype(np.float64))
    p_nc /= p_nc.sum(axis=1, keepdims=True)

    def distance(a, b):
        kl = [sum(p * np.log(p / q) for p, q in zip(p_nc[x], p_nc[y], strict=True)) for x, y in ((a, b), (b, a))]
        return sum(kl) / 2

    picked = contextual_diversity(pool, 25, rng_of(seed), How()).rows_m.tolist()
    assert picked == farthest_by_loops(distance, 40, 25, picked[0])


def test_contextual_diversity_stands_sure_teachers():
    logits_nc = np.array([[0.0, 300], [300, 0], [0, 299], [-60_000, 60_000]], np.float16)
    picked = contextual_diversity(Pool(np.zeros(4, int), None, None, logits_nc), 4, rng_of(), How()).rows_m
    assert sorted(picked.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["k-center", "contextual-diversity"])
def test_the_first_row_is_random(method):
    pool = pool_of(8)
    first = [int(METHODS[method](pool, 1, rng_of(seed), How()).rows_m[0]) for seed in range(400)]
    assert np.bincount(first, minlength=8).min() > 20


@pytest.mark.parametrize("classes", [1, 3])
def test_moderate_rows_lie_nearest_their_classes_median_distance(classes):
    pool = pool_of(200, classes=classes)
    off = np.empty(200)
    for label in range(classes):
        rows = [row for row in range(200) if pool.labels_n[row] == label]
        center = np.mean([pool.features_nd[row].astype(np.float64) for row in rows], axis=0)
        distances = [np.linalg.norm(pool.features_nd[row] - center) for row in rows]
        off[rows] = np.abs(np.array(distances) - np.median(distances))
    picked = moderate(pool, 80, rng_of(), How()).rows_m
    assert sorted(picked.tolist()) == sorted(np.argsort(off)[:80].tolist())
    assert (np.diff(off[picked]) > -1e-5).all()


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_are_taken_once_each(method):
    pool = Pool(np.zeros(30, int), None, np.repeat(np.eye(3), 10, axis=0), np.repeat(np.eye(3), 10, axis=0))
    assert sorted(METHODS[method](pool, 30, rng_of(), How()).rows_m.tolist()) == list(range(30))


@pytest.mark.parametrize("method", ["k-center", "contextual-diversity"])
def test_every_kind_of_row_comes_before_a_duplicate(method):
    kind_n = rng_of(1).integers(0, 6, 60)
    pool = Pool(np.zeros(60, int), None, 5 * np.eye(6)[kind_n], 5 * np.eye(6)[kind_n])
    assert sorted(kind_n[METHODS[method](pool, 6, rng_of(), How()).rows_m].tolist()) == list(range(6))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("balance", [True, False])
def test_half_precision_rows_mapped_from_disk_give_the_rows_of_the_same_in_memory(method, balance, tmp_path):
    pool, mapped = pool_of(20_000, d=4, classes=3), []  # more rows than a block has
    for name, array in (("features", pool.features_nd), ("logits", pool.logits_nc)):
        np.save(tmp_path / f"{name}.npy", array.astype(np.float16))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    in_memory = Pool(pool.labels_n, None, *(np.array(array, np.float32) for array in mapped))
    drawn = [
        choose(method, p, 0.002, rng_of(), balance=balance) for p in (Pool(pool.labels_n, None, *mapped), in_memory)
    ]
    assert np.array_equal(drawn[0].rows_m, drawn[1].rows_m)
