"""GradMatch and GLISTER, against explicit gradients. Shapes: n rows, d features, c classes, D = c (d + 1), m picks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from toolkit.selection import gradients
from toolkit.selection.pool import How, Picked, Pool

METHODS = {"grad-match": gradients.grad_match, "glister": gradients.glister}
C, D = 3, 4


def layer_and_pool(rows: int, seed: int = 0) -> tuple[torch.nn.Linear, Pool]:
    """A last layer, and a pool of what it read and said."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    layer = torch.nn.Linear(D, C).double()
    labels_n = rng.integers(0, C, rows)
    features_nd = rng.normal(size=(rows, D)) + labels_n[:, None]
    with torch.no_grad():
        logits_nc = layer(torch.from_numpy(features_nd)).numpy()
    return layer, Pool(labels_n, None, features_nd, logits_nc)


def explicit_nD(layer: torch.nn.Linear, of: Pool) -> np.ndarray:
    """Each row's gradient by autograd, weights first, then biases: ordered as the outer products are."""
    rows = []
    for h_d, label in zip(torch.from_numpy(of.features_nd), of.labels_n, strict=True):
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(h_d)[None], torch.tensor([label])).backward()
        rows.append(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten().numpy().copy())
    return np.stack(rows)


def picked(method: str, of: Pool, keep: int, seed: int = 0) -> Picked:
    return METHODS[method](of, keep, np.random.default_rng(seed), How())


def pursue(gradients_nD: np.ndarray, keep: int) -> list[int]:
    """Orthogonal matching pursuit as it is written down: a least-squares problem per pick."""
    target_D, rows = gradients_nD.sum(axis=0), []
    residual_D = target_D
    for _ in range(keep):
        gains_n = gradients_nD @ residual_D
        gains_n[rows] = -np.inf
        if gains_n.max() <= 0:
            break
        rows.append(int(gains_n.argmax()))
        weights_m = ridge(gradients_nD[rows], target_D, lambda matrix, wanted: np.linalg.lstsq(matrix, wanted)[0])
        residual_D = target_D - gradients_nD[rows].T @ weights_m
    return rows


def ridge(gradients_mD: np.ndarray, target_D: np.ndarray, solve) -> np.ndarray:
    """Ridge regression as least squares with rows √λ I added."""
    matrix = np.concatenate([gradients_mD.T, np.sqrt(gradients.RIDGE) * np.eye(len(gradients_mD))])
    return solve(matrix, np.concatenate([target_D, np.zeros(len(gradients_mD))]))


def test_factors_give_the_gradients_of_autograd():
    layer, of = layer_and_pool(20)
    expected_nD = explicit_nD(layer, of)
    found = gradients.last_layer(of, "cpu")
    np.testing.assert_allclose(found.of(list(range(20))).numpy(), expected_nD, atol=1e-12)
    np.testing.assert_allclose(found.total().flatten().numpy(), expected_nD.sum(axis=0), atol=1e-12)
    direction_D = np.random.default_rng(1).normal(size=C * (D + 1))
    along_n = found.along(torch.from_numpy(direction_D).view(C, D + 1))
    np.testing.assert_allclose(along_n.numpy(), expected_nD @ direction_D, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_grad_matchs_order_is_a_plain_pursuits(seed: int):
    layer, of = layer_and_pool(160, seed)
    expected = pursue(explicit_nD(layer, of), 150)  # beyond 65 picks the inverse is made afresh
    assert len(expected) > 40
    assert picked("grad-match", of, 150, seed).rows_m[: len(expected)].tolist() == expected


def test_grad_match_keeps_its_precision_over_many_inversions():
    layer, of = layer_and_pool(400)
    pursuit = gradients._Pursuit(gradients.last_layer(of, "cpu"), np.arange(400))
    rows = [pursuit.pick() for _ in range(300)]
    gradients_mD = explicit_nD(layer, of)[rows]
    target_D = explicit_nD(layer, of).sum(axis=0)
    weights_m = ridge(gradients_mD, target_D, lambda matrix, wanted: np.linalg.lstsq(matrix, wanted)[0])
    np.testing.assert_allclose(pursuit.residual_D.numpy(), target_D - gradients_mD.T @ weights_m, atol=1e-9)


@pytest.mark.parametrize("keep", [1, 5, 14, 40])
def test_grad_matchs_weights_are_the_nonnegative_ridge_regressions(keep: int):
    layer, of = layer_and_pool(60)
    rows_m, weights_m = picked("grad-match", of, keep)
    expected_nD = explicit_nD(layer, of)
    pursued = min(keep, len(pursue(expected_nD, keep)))
    reference_m = ridge(expected_nD[rows_m[:pursued]], expected_nD.sum(axis=0), lambda a, b: nnls(a, b)[0])
    np.testing.assert_allclose(weights_m[:pursued], reference_m, atol=1e-8)
    assert (weights_m[pursued:] == 0).all() and weights_m.min() >= 0


@pytest.mark.parametrize("shape", [(3, 20), (20, 3), (30, 30), (200, 10)])
def test_nonnegative_ridge_equals_scipys_where_many_weights_are_zero(shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    gradients_mD, target_D = rng.normal(size=shape), rng.normal(size=shape[1]) * 10
    weights_m = gradients.nonnegative_ridge(torch.from_numpy(gradients_mD), torch.from_numpy(target_D), gradients.RIDGE)
    np.testing.assert_allclose(weights_m, ridge(gradients_mD, target_D, lambda a, b: nnls(a, b)[0]), atol=1e-8)
    assert (weights_m == 0).any()


def test_grad_match_with_too_many_gradients_pursues_each_class_alone(monkeypatch: pytest.MonkeyPatch):
    layer, of = layer_and_pool(90)
    blocks_ncD = explicit_nD(layer, of).reshape(90, C, D + 1)
    own_nD = np.zeros_like(blocks_ncD)
    own_nD[range(90), of.labels_n] = blocks_ncD[range(90), of.labels_n]  # other classes' blocks left out
    own_nD = own_nD.reshape(90, -1)
    monkeypatch.setattr(gradients, "LARGEST", 1)
    rows_m, weights_m = picked("grad-match", of, 30)
    assert rows_m.tolist() == pursue(own_nD, 30)
    reference_m = ridge(own_nD[rows_m], own_nD.sum(axis=0), lambda a, b: nnls(a, b)[0])
    np.testing.assert_allclose(weights_m, reference_m, atol=1e-8)
    assert picked("grad-match", of, 1).rows_m.tolist() == rows_m[:1].tolist()  # the other classes have no pick


def test_rows_that_do_not_correlate_follow_at_random_with_weight_0():
    _, of = layer_and_pool(40)
    sure = 1000.0 * np.eye(C)[of.labels_n]
    sure[7] = 0  # the only row with a gradient
    of = Pool(of.labels_n, None, of.features_nd, sure)
    rests = []
    for seed in range(2):
        rows_m, weights_m = picked("grad-match", of, 20, seed)
        assert rows_m[0] == 7 and weights_m[0] > 0 and (weights_m[1:] == 0).all()
        rests.append(rows_m[1:].tolist())
    assert rests[0] != rests[1] and rests[0] != sorted(rests[0])


@pytest.mark.parametrize("rows", [90, 350])
def test_glister_equals_an_explicit_layer_that_takes_the_steps(rows: int):
    layer, of = layer_and_pool(rows)
    features_nd, labels_n = torch.from_numpy(of.features_nd), torch.from_numpy(of.labels_n)
    gradients_nD = explicit_nD(layer, of)
    start = [parameter.detach().clone() for parameter in layer.parameters()]
    expected: list[int] = []
    while len(expected) < rows:
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(features_nd), labels_n).backward()
        pool_D = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1).flatten().numpy()
        gains_n = gradients_nD @ pool_D
        gains_n[expected] = -np.inf
        expected += np.argsort(-gains_n)[: min(-(-rows // 100), rows - len(expected))].tolist()
        with torch.no_grad():
            for parameter, begun in zip(layer.parameters(), start, strict=True):
                parameter.copy_(begun)
        layer.zero_grad()
        torch.nn.functional.cross_entropy(layer(features_nd[expected]), labels_n[expected]).backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter -= gradients.STEP * parameter.grad
    rows_m, weights_m = picked("glister", of, rows)
    assert rows_m.tolist() == expected
    assert weights_m.tolist() == [1.0] * rows


@pytest.mark.parametrize("method", METHODS)
def test_fewer_picks_are_the_beginning_of_more_and_of_exact_number(method: str):
    _, of = layer_and_pool(250)
    of = Pool(of.labels_n, None, of.features_nd.astype(np.float16), of.logits_nc.astype(np.float16))
    longest = picked(method, of, 250).rows_m
    assert sorted(longest) == list(range(250))
    for keep in (1, 8, 249):
        assert picked(method, of, keep).rows_m.tolist() == longest[:keep].tolist()


@pytest.mark.parametrize("method", METHODS)
def test_identical_rows_are_picked_at_random(method: str):
    alike = Pool(np.zeros(12, int), None, np.ones((12, 4), np.float32), np.ones((12, 2), np.float32))
    assert len({int(picked(method, alike, 3, seed).rows_m[0]) for seed in range(20)}) > 4
    assert sorted(picked(method, alike, 12).rows_m) == list(range(12))
    assert picked(method, alike, 12, 3).rows_m.tolist() == picked(method, alike, 12, 3).rows_m.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_picked_where_nothing_is_asked(method: str):
    rows_m, weights_m = picked(method, layer_and_pool(5)[1], 0)
    assert rows_m.shape == weights_m.shape == (0,)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_one_row_gives_it(method: str):
    _, of = layer_and_pool(1)
    assert picked(method, of, 1).rows_m.tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
def test_progress_adds_up_to_the_picks(method: str):
    told: list[int] = []
    _, of = layer_and_pool(330)
    METHODS[method](of, 10, np.random.default_rng(0), How(tick=told.append))
    assert sum(told) == 10
