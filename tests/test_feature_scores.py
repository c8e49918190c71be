"""Scores of the features' geometry against brute force, closed forms and scikit-learn, in blocks of any size."""

import numpy as np
import pytest
import scipy.stats
import sklearn.cluster
import sklearn.metrics
import sklearn.neighbors
import sklearn.preprocessing

from toolkit.scores import FEATURES, feature_score, from_features
from toolkit.scores.from_features import centroid, knn_distance, prototype, visits_of

ROWS, DIMENSIONS, CLASSES = 600, 8, 4


def blobs(rows=ROWS, spread=0.05, clusters=CLASSES, seed=0):
    """Features in well-separated directions, ordered by class, as data sets on disk often are."""
    rng = np.random.default_rng(seed)
    labels_n = np.sort(rng.integers(0, clusters, rows))
    directions_kd = np.linalg.qr(rng.normal(size=(DIMENSIONS, DIMENSIONS)))[0][:clusters] * 3
    return directions_kd[labels_n] + rng.normal(scale=spread, size=(rows, DIMENSIONS)), labels_n


def cosine_to(features_nd, means_kd):
    return sklearn.metrics.pairwise.cosine_distances(features_nd, means_kd).min(axis=1)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(from_features, "BLOCK_ROWS", 70)


def test_prototypes_of_separate_clusters_are_their_means():
    """Clusters that no pass confuses: the centroids are the means of the unit rows, whatever the seeds were."""
    features_nd, labels_n = blobs()
    unit_nd = features_nd / np.linalg.norm(features_nd, axis=1, keepdims=True)
    means_kd = np.stack([unit_nd[labels_n == label].mean(axis=0) for label in range(CLASSES)])
    found_n = prototype(features_nd, CLASSES, np.random.default_rng(0))
    np.testing.assert_allclose(found_n, cosine_to(features_nd, means_kd), atol=1e-5)


def test_prototypes_need_no_labels_and_are_about_as_good_as_whole_k_means():
    rng = np.random.default_rng(3)
    features_nd = np.abs(rng.normal(size=(3000, 16)))
    whole = sklearn.cluster.KMeans(10, n_init=3, random_state=0).fit(sklearn.preprocessing.normalize(features_nd))
    expected = cosine_to(features_nd, whole.cluster_centers_).mean()
    assert prototype(features_nd, 10, np.random.default_rng(0)).mean() < 1.1 * expected


def test_prototype_is_the_same_for_the_same_generator_and_ignores_length():
    features_nd, _ = blobs(spread=0.6)
    first = prototype(features_nd, CLASSES, np.random.default_rng(0))
    assert np.array_equal(first, prototype(features_nd, CLASSES, np.random.default_rng(0)))
    longer = features_nd * np.random.default_rng(1).choice([0.5, 2, 4], size=(ROWS, 1))
    np.testing.assert_allclose(prototype(longer, CLASSES, np.random.default_rng(0)), first, atol=1e-6)


def test_as_many_clusters_as_rows_leave_no_distance():
    features_nd = np.eye(5)
    np.testing.assert_allclose(prototype(features_nd, 5, np.random.default_rng(0)), 0, atol=1e-6)


def test_rows_of_zeros_are_at_distance_one():
    features_nd, _ = blobs()
    features_nd[7] = 0
    found_n = prototype(features_nd, CLASSES, np.random.default_rng(0))
    assert found_n[7] == 1 and np.isfinite(found_n).all() and (found_n >= 0).all()


def test_a_row_far_from_all_is_hard():
    features_nd, labels_n = blobs()
    features_nd[11] = -features_nd[labels_n == labels_n[11]].mean(axis=0)
    for name in FEATURES:
        found_n = feature_score(name, features_nd, labels_n, CLASSES, np.random.default_rng(0))
        assert found_n.argmax() == 11, name


def test_clusters_are_checked():
    for clusters in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            prototype(np.ones((3, 2)), clusters, np.random.default_rng(0))


def ordered_clusters(rows, clusters, features, noise=0.3, seed=0):
    """Rows about random directions, ordered by class: many clusters, each seen by one block in a row."""
    rng = np.random.default_rng(seed)
    labels_n = np.sort(rng.integers(0, clusters, rows))
    directions_kd = sklearn.preprocessing.normalize(rng.normal(size=(clusters, features)))
    noise_nd = rng.normal(scale=noise / np.sqrt(features), size=(rows, features))
    return (directions_kd[labels_n] + noise_nd).astype(np.float16), directions_kd, labels_n


@pytest.mark.parametrize(("rows", "features"), [(10_000, 80), (6000, 32)], ids=["sampled", "all rows"])
def test_many_ordered_clusters_are_found_as_whole_k_means_finds_them(rows, features):
    """More rows than the sample, or fewer; features wider than the seeds' projection, or narrower."""
    features_nd, directions_kd, labels_n = ordered_clusters(rows, 220, features)
    assert (rows > from_features.SAMPLE_ROWS) == (features == 80)
    unit_nd = sklearn.preprocessing.normalize(features_nd.astype(np.float64))
    whole = sklearn.cluster.KMeans(220, n_init=1, random_state=0).fit(unit_nd)
    found_n = prototype(features_nd, 220, np.random.default_rng(0))
    assert found_n.mean() < 1.05 * cosine_to(unit_nd, whole.cluster_centers_).mean()
    assert (found_n < 1e-6).sum() < 5
    true_n = 1 - (unit_nd * directions_kd[labels_n]).sum(axis=1)
    assert scipy.stats.spearmanr(found_n, true_n).statistic > 0.85
    assert np.array_equal(found_n, prototype(features_nd, 220, np.random.default_rng(0)))


def test_one_pass_moves_each_centroid_to_its_rows_and_leaves_one_without():
    unit_nd = np.array([[1, 0], [0.8, 0.6], [0, -1], [0, 0]], np.float32)
    centroids_kd = np.array([[1, 0], [0, -1], [-1, 0]], np.float32)
    moved_kd, labels_n = from_features._lloyd(iter([unit_nd[:1], unit_nd[1:]]), centroids_kd, lambda rows: None)
    assert labels_n[:3].tolist() == [0, 0, 1]
    np.testing.assert_allclose(moved_kd, [np.array([3, 1]) / np.sqrt(10), [0, -1], [-1, 0]], atol=1e-6)
    assert moved_kd.dtype == np.float32


def test_fewer_directions_than_clusters_leave_no_distance():
    features_nd = np.repeat(np.eye(3), 10, axis=0)
    np.testing.assert_allclose(prototype(features_nd, 7, np.random.default_rng(0)), 0, atol=1e-6)
    np.testing.assert_array_equal(prototype(np.zeros((5, 3)), 2, np.random.default_rng(0)), 1)


def test_large_data_are_gone_through_three_times_beside_a_sample():
    assert visits_of(1_281_167, 1000) == 3 * 1_281_167 + 10 * 8192
    assert visits_of(1_281_167, 10_000) == 3 * 1_281_167 + 10 * 50_000
    assert visits_of(5000, 10) == 11 * 5000 and visits_of(0, 0) == 0


def test_centroid_is_the_distance_to_the_own_classs_mean(small_blocks):
    features_nd, labels_n = blobs(spread=0.5)
    mixed = np.random.default_rng(0).permutation(ROWS)
    features_nd, labels_n = features_nd[mixed], labels_n[mixed] * 3 + 1  # labels with gaps
    expected = []
    for feature_d, label in zip(features_nd, labels_n, strict=True):
        same = [other_d for other_d, of in zip(features_nd, labels_n, strict=True) if of == label]
        expected.append(sum((feature_d - sum(same) / len(same)) ** 2) ** 0.5)
    np.testing.assert_allclose(centroid(features_nd, labels_n), expected, rtol=1e-12)


def test_centroid_in_closed_form():
    features_nd = np.array([[0, 0], [2, 0], [5, 5], [0, 0], [0, 6]])
    np.testing.assert_allclose(centroid(features_nd, np.array([0, 0, 7, 2, 2])), [1, 1, 0, 3, 3])


def test_knn_distance_is_scikit_learns_within_each_class():
    features_nd, labels_n = blobs(spread=0.5)
    mixed = np.random.default_rng(0).permutation(ROWS)
    features_nd, labels_n = features_nd[mixed], labels_n[mixed]
    expected = np.empty(ROWS)
    for label in range(CLASSES):
        of_class = features_nd[labels_n == label]
        distances, _ = sklearn.neighbors.NearestNeighbors(n_neighbors=11).fit(of_class).kneighbors(of_class)
        expected[labels_n == label] = distances[:, 1:].mean(axis=1)  # but for the row itself
    np.testing.assert_allclose(knn_distance(features_nd, labels_n), expected, rtol=1e-5)


def test_small_classes_have_fewer_neighbours_and_one_alone_is_hardest():
    features_nd = np.array([[0.0], [1.0], [3.0], [100.0]])
    labels_n = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(knn_distance(features_nd, labels_n), [2, 1.5, 2.5, 2.5])
    assert np.array_equal(knn_distance(features_nd, np.arange(4)), np.zeros(4))


@pytest.mark.parametrize("name", FEATURES)
def test_float16_on_disk_scores_as_the_numbers_it_holds(name, tmp_path):
    features_nd, labels_n = blobs(spread=0.5)
    half = features_nd.astype(np.float16)
    stored = np.memmap(tmp_path / "features", np.float16, "w+", shape=half.shape)
    stored[:] = half
    of_disk = feature_score(name, stored, labels_n, CLASSES, np.random.default_rng(0))
    in_memory = feature_score(name, half.astype(np.float32), labels_n, CLASSES, np.random.default_rng(0))
    assert of_disk.dtype == np.float64 and of_disk.shape == (ROWS,)
    np.testing.assert_allclose(of_disk, in_memory, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sample", [8192, 150], ids=["all rows", "sampled"])
@pytest.mark.parametrize("name", FEATURES)
def test_blocks_change_nothing_and_every_visit_is_told(name, sample, monkeypatch):
    monkeypatch.setattr(from_features, "SAMPLE_ROWS", sample)
    features_nd, labels_n = blobs()
    told = []
    whole = feature_score(name, features_nd, labels_n, CLASSES, np.random.default_rng(0), tick=told.append)
    visits = {"prototype": visits_of(ROWS, CLASSES), "centroid": 2 * ROWS, "knn_distance": ROWS}[name]
    assert sum(told) == visits
    monkeypatch.setattr(from_features, "BLOCK_ROWS", 70)
    in_blocks = feature_score(name, features_nd, labels_n, CLASSES, np.random.default_rng(0))
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-4, atol=1e-5)


def test_every_score_says_what_it_is():
    assert all(score.definition and score.paper for score in FEATURES.values())
