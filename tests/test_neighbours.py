"""Nearest rows, CAL and D2, against loops. Shapes: n rows, d features, c classes, k neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from toolkit.core import nearest as core
from toolkit.core.nearest import nearest
from toolkit.selection import neighbours
from toolkit.selection.pool import How, Picked, Pool

METHODS = {"cal": neighbours.cal, "d2": neighbours.d2}


def pool(rows: int, seed: int = 0, dtype: type = np.float32) -> Pool:
    rng = np.random.default_rng(seed)
    features_nd = rng.normal(size=(rows, 5)) + 3 * rng.integers(0, 3, rows)[:, None]
    logits_nc = rng.normal(size=(rows, 3)).astype(dtype) * 3
    return Pool(rng.integers(0, 3, rows), rng.random(rows), features_nd.astype(dtype), logits_nc)


def picked(method: str, of: Pool, keep: int, seed: int = 0, drop_hardest: float = 0.1) -> Picked:
    return METHODS[method](of, keep, np.random.default_rng(seed), How(drop_hardest=drop_hardest))


def brute(features_nd: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    x_nd = features_nd.astype(np.float32).astype(np.float64)
    distances_nn = cdist(x_nd, x_nd)
    np.fill_diagonal(distances_nn, np.inf)
    indices_nk = np.argsort(distances_nn, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances_nn, indices_nk, axis=1), indices_nk


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("columns", "held", "block"), [(8192, 2**30, 256), (32, 0, 7), (5, 2**30, 100)])
def test_nearest_equals_all_distances(
    dtype: type, columns: int, held: int, block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(core, "COLUMNS", columns)
    monkeypatch.setattr(core, "HELD_BYTES", held)
    features_nd = pool(137).features_nd.astype(dtype) + 10  # float16 has equal distances here
    distances_nk, indices_nk = nearest(features_nd, 9, block=block)
    expected_nk, _ = brute(features_nd, 9)
    np.testing.assert_allclose(distances_nk, expected_nk, rtol=1e-6)
    assert distances_nk.dtype == np.float32 and indices_nk.dtype == np.int64
    assert all(len(set(row)) == 9 and at not in row for at, row in enumerate(indices_nk.tolist()))
    x_nd = features_nd.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(x_nd[indices_nk] - x_nd[:, None], axis=2), expected_nk, rtol=1e-5)


def test_nearest_is_exact_where_float32_products_cancel():
    rng = np.random.default_rng(0)
    centres_nd = 1000 * rng.normal(size=(20, 8))[rng.integers(0, 20, 300)]
    features_nd = (centres_nd + rng.integers(-20, 20, (300, 8)) * 2.0**-7).astype(np.float32)
    distances_nk, _ = nearest(features_nd, 5)
    np.testing.assert_allclose(distances_nk, brute(features_nd, 5)[0], rtol=1e-6)


@pytest.mark.parametrize("columns", [8192, 32])
def test_nearest_is_exact_where_float64_products_cancel_too(columns: int, monkeypatch: pytest.MonkeyPatch):
    """Half of the rows lie a millionth apart near 0, the others near 1000."""
    monkeypatch.setattr(core, "COLUMNS", columns)
    features_nd = np.concatenate([np.arange(200).reshape(100, 2) * 1e-6, 1000 + np.arange(200).reshape(100, 2)])
    features_nd = np.random.default_rng(0).permutation(features_nd.astype(np.float32))
    expected_nk, positions_nk = brute(features_nd, 4)
    distances_nk, indices_nk = nearest(features_nd, 4, block=70)
    np.testing.assert_allclose(distances_nk, expected_nk, rtol=1e-6)
    apart_n = (np.diff(expected_nk, axis=1) > 1e-9 * expected_nk[:, 1:]).all(axis=1)  # and not two at one distance
    assert np.array_equal(indices_nk[apart_n], positions_nk[apart_n]) and apart_n.sum() > 20


def test_rows_with_neighbours_at_distance_zero_are_searched_once(monkeypatch: pytest.MonkeyPatch):
    """Nothing is nearer than an equal row, so that data with many of them cost no more."""
    searched = []
    search = core._search
    monkeypatch.setattr(core, "_search", lambda *args, double: searched.append(double) or search(*args, double=double))
    features_nd = np.repeat(np.random.default_rng(0).normal(size=(3, 6)), 20, axis=0)
    assert (nearest(features_nd, 4)[0] == 0).all() and searched == [False]


def test_nearest_reads_features_mapped_from_disk(tmp_path: Path):
    np.save(tmp_path / "features.npy", pool(50).features_nd.astype(np.float16))
    mapped_nd = np.load(tmp_path / "features.npy", mmap_mode="r")
    assert (nearest(mapped_nd, 3)[1] == nearest(np.array(mapped_nd), 3)[1]).all()


def test_equal_rows_are_neighbours_but_a_row_is_never_its_own():
    distances_nk, indices_nk = nearest(np.ones((20, 3), np.float16), 4)
    assert (distances_nk == 0).all()
    assert all(row not in near and len(set(near)) == 4 for row, near in enumerate(indices_nk.tolist()))


def test_few_rows_have_few_neighbours():
    assert nearest(np.zeros((1, 3)), 4)[0].shape == (1, 0)
    assert nearest(np.array([[0.0], [3.0]]), 4)[0].tolist() == [[3.0], [3.0]]
    assert nearest(np.zeros((0, 3)), 4)[1].shape == (0, 0)


def test_nearest_refuses_what_it_cannot_search():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        nearest(np.zeros((4, 2)), 0)
    with pytest.raises(ValueError, match="shape"):
        nearest(np.zeros(4), 1)


def test_cal_equals_loops():
    of = pool(60)
    _, indices_nk = brute(of.features_nd, 10)
    p_nc = np.exp(of.logits_nc.astype(np.float64))
    p_nc /= p_nc.sum(axis=1, keepdims=True)
    scores = []
    for row in range(60):
        kls = [sum(q * np.log(q / p) for q, p in zip(p_nc[j], p_nc[row], strict=True)) for j in indices_nk[row]]
        scores.append(np.mean(kls))
    assert picked("cal", of, 60).rows_m.tolist() == np.argsort(scores)[::-1].tolist()


@pytest.mark.parametrize("lowest", [0.0, -2.0])
def test_d2_equals_loops(lowest: float):
    of = pool(80)
    scores_n = of.scores_n + lowest
    of = Pool(of.labels_n, scores_n, of.features_nd, of.logits_nc)
    distances_nk, indices_nk = brute(of.features_nd, 5)
    squared_nk = distances_nk**2 / (distances_nk**2).mean()
    s_n = scores_n if lowest == 0 else scores_n - scores_n.min()
    x_n = np.array(
        [s_n[i] + sum(np.exp(-squared_nk[i, k]) * s_n[indices_nk[i, k]] for k in range(5)) for i in range(80)]
    )
    expected: list[int] = []
    for _ in range(80):
        best = max((i for i in range(80) if i not in expected), key=lambda i: x_n[i])
        expected.append(best)
        for k in range(5):
            x_n[indices_nk[best, k]] -= np.exp(-0.1 * squared_nk[best, k]) * max(x_n[best], 0)
    found = picked("d2", of, 80, drop_hardest=0).rows_m.tolist()
    assert found == expected


@pytest.mark.parametrize(("drop", "removed"), [(None, 8), (0.29, 23), (0.9999, 79)])
def test_d2_leaves_out_the_hardest_and_picks_as_if_they_were_not_there(drop: float | None, removed: int):
    of = pool(80)
    how = How() if drop is None else How(drop_hardest=drop)
    found = neighbours.d2(of, 80, np.random.default_rng(0), how).rows_m
    by_score = np.argsort(of.scores_n)
    rest, gone = np.sort(by_score[: 80 - removed]), by_score[80 - removed :]
    assert found[80 - removed :].tolist() == gone.tolist()  # last, easiest first
    without = picked("d2", of.of(rest), len(rest), drop_hardest=0).rows_m
    assert found[: 80 - removed].tolist() == rest[without].tolist()


def test_d2_does_not_depend_on_the_features_scale():
    of = pool(50)
    larger = Pool(of.labels_n, of.scores_n, of.features_nd * 64, of.logits_nc)
    assert picked("d2", of, 20).rows_m.tolist() == picked("d2", larger, 20).rows_m.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_fewer_picks_are_the_beginning_of_more_and_of_exact_number(method: str):
    of = pool(50, dtype=np.float16)
    longest = picked(method, of, 50).rows_m
    assert sorted(longest) == list(range(50))
    for keep in (1, 7, 49):
        assert picked(method, of, keep).rows_m.tolist() == longest[:keep].tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("score", [0.0, 1.0, -1.0])
def test_identical_rows_are_picked_at_random(method: str, score: float):
    alike = Pool(np.zeros(12, int), np.full(12, score), np.ones((12, 4), np.float32), np.ones((12, 2), np.float32))
    assert len({int(picked(method, alike, 3, seed).rows_m[0]) for seed in range(20)}) > 4
    assert sorted(picked(method, alike, 12).rows_m) == list(range(12))
    assert picked(method, alike, 12, 3).rows_m.tolist() == picked(method, alike, 12, 3).rows_m.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_small_pools_work(method: str):
    assert picked(method, pool(1), 1).rows_m.tolist() == [0]
    assert sorted(picked(method, pool(2), 2).rows_m) == [0, 1]
