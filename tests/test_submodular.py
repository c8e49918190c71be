"""Facility location, CRAIG and graph cut, against loops over explicit matrices.

Shapes: n rows, d features, c classes, m picks, D gradients of one row.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from toolkit.selection import submodular
from toolkit.selection.pool import How, Picked, Pool

METHODS = {
    "facility-location": submodular.facility_location,
    "craig": submodular.craig,
    "graph-cut": submodular.graph_cut,
}


def pool(rows: int, seed: int = 0, dtype: type = np.float32) -> Pool:
    rng = np.random.default_rng(seed)
    features_nd = rng.normal(size=(rows, 5)) + rng.integers(0, 3, rows)[:, None]
    return Pool(rng.integers(0, 3, rows), None, features_nd.astype(dtype), rng.normal(size=(rows, 3)).astype(dtype))


def picked(method: str, of: Pool, keep: int, seed: int = 0) -> Picked:
    return METHODS[method](of, keep, np.random.default_rng(seed), How())


def cosine_nn(of: Pool) -> np.ndarray:
    x_nd = np.asarray(of.features_nd, np.float64)
    x_nd /= np.linalg.norm(x_nd, axis=1, keepdims=True)
    return (1 + x_nd @ x_nd.T) / 2


def gradient_distances_nn(of: Pool) -> np.ndarray:
    """Distances of the gradients that autograd finds in a real last layer, row by row."""
    gradients = []
    for features_d, logits_c, label in zip(of.features_nd, of.logits_nc, of.labels_n, strict=True):
        layer = torch.nn.Linear(len(features_d), len(logits_c)).double()
        h_d = torch.from_numpy(features_d.astype(np.float64))
        with torch.no_grad():
            layer.bias += torch.from_numpy(logits_c.astype(np.float64)) - layer(h_d)
        torch.nn.functional.cross_entropy(layer(h_d)[None], torch.tensor([label])).backward()
        gradients.append(torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).numpy())
    stacked_nD = np.stack(gradients)
    return np.linalg.norm(stacked_nD[:, None] - stacked_nD[None], axis=2)


def assert_greedy(rows_m: np.ndarray, similarity_nn: np.ndarray) -> None:
    """Every pick's gain is the largest of all. Which of equal ones is picked is chance: two rows that only cover each
    other always gain the same."""
    best_n = np.full(len(similarity_nn), similarity_nn.min() - 1)
    for at, row in enumerate(rows_m):
        gains_n = np.maximum(similarity_nn - best_n, 0).sum(axis=1)
        gains_n[rows_m[:at]] = -1
        assert gains_n[row] == pytest.approx(gains_n.max(), rel=1e-5, abs=1e-5)
        best_n = np.maximum(best_n, similarity_nn[row])


SIMILARITY = {"facility-location": cosine_nn, "craig": lambda of: -gradient_distances_nn(of)}


@pytest.mark.parametrize("held", [2**30, 0])
@pytest.mark.parametrize("block", [256, 7])
@pytest.mark.parametrize("method", SIMILARITY)
def test_lazy_greedy_is_greedy_held_or_computed_as_needed(
    method: str, block: int, held: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submodular, "HELD_BYTES", held)
    monkeypatch.setattr(submodular, "BLOCK", block)
    of = pool(90)
    assert_greedy(picked(method, of, 60).rows_m, SIMILARITY[method](of))


def test_lazy_greedy_equals_naive_greedy_where_gains_are_whole_numbers():
    similarity_nn = np.random.default_rng(0).integers(0, 9, (70, 70)).astype(np.float32)
    best_n, expected = np.zeros(70), []
    for _ in range(70):
        gains_n = np.maximum(similarity_nn - best_n, 0).sum(axis=1)
        gains_n[expected] = -1
        expected.append(int(gains_n.argmax()))
        best_n = np.maximum(best_n, similarity_nn[expected[-1]])
    rows_m, _ = submodular.lazy_greedy(lambda rows: torch.from_numpy(similarity_nn)[rows], torch.zeros(70), 70)
    assert rows_m.tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_facility_location_is_within_1_minus_1_over_e_of_the_best_subset(seed: int):
    of = pool(11, seed)
    similarity_nn = cosine_nn(of)

    def value(rows: tuple[int, ...] | np.ndarray) -> float:
        return float(similarity_nn[list(rows)].max(axis=0).sum())

    for keep in (1, 2, 3, 4):
        best = max(value(rows) for rows in combinations(range(11), keep))
        assert value(picked("facility-location", of, keep).rows_m) >= (1 - 1 / math.e) * best


def test_craigs_weights_are_the_sizes_of_the_clusters_around_the_picks():
    of = pool(80)
    rows_m, weights_m = picked("craig", of, 17)
    nearest_n = gradient_distances_nn(of)[:, rows_m].argmin(axis=1)
    assert weights_m.tolist() == np.bincount(nearest_n, minlength=17).tolist()
    assert weights_m.sum() == 80 and weights_m.min() >= 1


def test_graph_cut_equals_loops_over_its_definition():
    of = pool(40)
    similarity_nn = cosine_nn(of)

    def value(rows: list[int]) -> float:
        return float(similarity_nn[:, rows].sum() - similarity_nn[np.ix_(rows, rows)].sum())

    rows: list[int] = []
    for _ in range(25):
        left = [j for j in range(40) if j not in rows]
        rows.append(max(left, key=lambda j: value([*rows, j])))
    assert picked("graph-cut", of, 25).rows_m.tolist() == rows


@pytest.mark.parametrize("method", METHODS)
def test_fewer_picks_are_the_beginning_of_more_and_of_exact_number(method: str):
    of = pool(50, dtype=np.float16)
    longest = picked(method, of, 50).rows_m
    assert sorted(longest) == list(range(50))
    for keep in (1, 7, 49):
        assert picked(method, of, keep).rows_m.tolist() == longest[:keep].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_identical_rows_are_picked_at_random(method: str):
    alike = Pool(np.zeros(12, int), None, np.ones((12, 4), np.float32), np.ones((12, 2), np.float32))
    firsts = {int(picked(method, alike, 3, seed).rows_m[0]) for seed in range(20)}
    assert len(firsts) > 4
    assert picked(method, alike, 12, 3).rows_m.tolist() == picked(method, alike, 12, 3).rows_m.tolist()
    zeros = Pool(np.zeros(5, int), None, np.zeros((5, 4), np.float32), np.zeros((5, 2), np.float32))
    assert sorted(picked(method, zeros, 5).rows_m) == list(range(5))


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_one_row_gives_it(method: str):
    rows_m, weights_m = picked(method, pool(1), 1)
    assert rows_m.tolist() == [0]
    assert weights_m is None or weights_m.tolist() == [1.0]


@pytest.mark.parametrize("method", METHODS)
def test_progress_adds_up_to_the_picks(method: str):
    told: list[int] = []
    METHODS[method](pool(30), 9, np.random.default_rng(0), How(tick=told.append))
    assert sum(told) == 9
