"""Every score against an independent calculation, on usual and on extreme logits."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

from toolkit.models.zoo import FeatureReader, build_model
from toolkit.scores import SCORES, compute_scores
from toolkit.scores.from_pass import PassArrays, log_softmax

VIEWS, ROWS, CLASSES, FEATURES = 3, 40, 7, 12


def head_outputs(dtype=np.float64):
    """Logits that truly come from a linear layer on the features, as GraNd needs."""
    rng = np.random.default_rng(0)
    features_vnd = rng.normal(size=(VIEWS, ROWS, FEATURES))
    weight_cd, bias_c = rng.normal(size=(CLASSES, FEATURES)), rng.normal(size=CLASSES)
    arrays = PassArrays(
        (features_vnd @ weight_cd.T + bias_c).astype(dtype),
        features_vnd[0].astype(dtype),
        rng.integers(0, CLASSES, ROWS),
    )
    return arrays, weight_cd, bias_c


def reference_loss(arrays, weight_cd, bias_c):
    logits, labels = torch.from_numpy(arrays.logits_vnc[0]), torch.from_numpy(arrays.labels_n)
    return F.cross_entropy(logits, labels, reduction="none").numpy()


def reference_el2n(arrays, weight_cd, bias_c):
    p_nc = scipy.special.softmax(arrays.logits_vnc[0], axis=1)
    return np.sqrt(((p_nc - np.eye(CLASSES)[arrays.labels_n]) ** 2).sum(axis=1))


def reference_entropy(arrays, weight_cd, bias_c):
    return scipy.stats.entropy(scipy.special.softmax(arrays.logits_vnc[0], axis=1), axis=1)


def reference_margin(arrays, weight_cd, bias_c):
    first, second = torch.from_numpy(arrays.logits_vnc[0]).softmax(dim=1).topk(2, dim=1).values.T
    return (1 - first + second).numpy()


def reference_least_confidence(arrays, weight_cd, bias_c):
    p_nc = scipy.special.softmax(arrays.logits_vnc[0], axis=1)
    return np.array([1 - max(p_c) for p_c in p_nc.tolist()])


def reference_grand(arrays, weight_cd, bias_c):
    norms = []
    for feature_d, label in zip(arrays.features_nd, arrays.labels_n, strict=True):
        weight, bias = (torch.tensor(parameter, requires_grad=True) for parameter in (weight_cd, bias_c))
        logits_c = F.linear(torch.from_numpy(feature_d), weight, bias)
        F.cross_entropy(logits_c, torch.tensor(label)).backward()
        norms.append(torch.cat([weight.grad.flatten(), bias.grad]).norm().item())
    return np.array(norms)


def reference_disagreement(arrays, weight_cd, bias_c):
    """The mean divergence of the views from their mean."""
    p_vnc = scipy.special.softmax(arrays.logits_vnc, axis=2)
    return scipy.special.rel_entr(p_vnc, p_vnc.mean(axis=0)).sum(axis=2).mean(axis=0)


REFERENCES = {
    "loss": reference_loss,
    "el2n": reference_el2n,
    "entropy": reference_entropy,
    "margin": reference_margin,
    "least_confidence": reference_least_confidence,
    "grand": reference_grand,
    "disagreement": reference_disagreement,
}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_what_its_definition_says(name):
    arrays, weight_cd, bias_c = head_outputs()
    computed_n = SCORES[name].compute(arrays)
    assert computed_n.shape == (ROWS,)
    np.testing.assert_allclose(computed_n, REFERENCES[name](arrays, weight_cd, bias_c), rtol=1e-10, atol=1e-12)


def test_grand_is_the_gradient_of_a_networks_own_last_layer():
    model = build_model("resnet8", 5, width=4).double().eval()
    images, labels = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), torch.arange(6) % 5
    with torch.no_grad():
        features_nd, logits_nc = FeatureReader(model)(images)
    norms = []
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        norms.append(torch.cat([model.fc.weight.grad.flatten(), model.fc.bias.grad]).norm().item())
    arrays = PassArrays(logits_nc.numpy()[None], features_nd.numpy(), labels.numpy())
    np.testing.assert_allclose(SCORES["grand"].compute(arrays), norms, rtol=1e-10)


@pytest.mark.parametrize("name", SCORES)
def test_float16_arrays_score_as_the_numbers_they_hold(name):
    half, _, _ = head_outputs(np.float16)
    wide = PassArrays(half.logits_vnc.astype(np.float64), half.features_nd.astype(np.float64), half.labels_n)
    np.testing.assert_allclose(SCORES[name].compute(half), SCORES[name].compute(wide), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", SCORES)
def test_scores_of_extreme_logits_are_finite(name, dtype):
    rng = np.random.default_rng(0)
    logits_vnc = rng.choice([-6e4, 0, 6e4], size=(VIEWS, ROWS, CLASSES)).astype(dtype)
    features_nd = np.full((ROWS, FEATURES), 6e4, dtype=dtype)
    scores_n = SCORES[name].compute(PassArrays(logits_vnc, features_nd, rng.integers(0, CLASSES, ROWS)))
    assert np.isfinite(scores_n).all()
    assert (scores_n >= 0).all()
    assert np.isfinite(scores_n.astype(np.float32)).all()


@pytest.mark.parametrize("name", SCORES)
def test_high_means_hard(name):
    """Row 0: right, sure and steady over the views. Row 1: unsure, wrong and unsteady."""
    logits_vnc = np.array([[[9, 0, 0], [1, 1.1, 0]], [[9, 0, 0], [0, 2, 1.9]]])
    easy, hard = SCORES[name].compute(PassArrays(logits_vnc, np.ones((2, 4)), np.array([0, 0])))
    assert hard > easy


@pytest.mark.parametrize("gap", [0.5, 20, 38, 80, 300])
def test_rows_however_sure_keep_their_digits(gap):
    """Two classes, right by `gap`: the other's odds are e = exp(−gap), p_y = 1 / (1 + e)."""
    odds = math.exp(-gap)
    other = odds / (1 + odds)
    expected = {
        "loss": math.log1p(odds),
        "el2n": math.sqrt(2) * other,
        "entropy": math.log1p(odds) / (1 + odds) + other * (gap + math.log1p(odds)),
        "margin": 2 * other,
        "least_confidence": other,
        "grand": math.sqrt(2) * other * math.sqrt(3**2 + 1),
    }
    for shift, label in ((0, 0), (0, 1), (-50, 0)):
        logits_n = np.roll([gap + shift, shift], label)
        arrays = PassArrays(logits_n[None, None], np.array([[3.0]]), np.array([label]))
        for name, value in expected.items():
            np.testing.assert_allclose(SCORES[name].compute(arrays), value, rtol=1e-13, err_msg=name)


def test_sure_views_disagree_by_the_digits_they_have():
    """Near certainty the divergence is Σ_k e_k log(e_k / mean e) / v, for the odds e_k, to first order in them."""
    gaps = [38.0, 40.0]
    odds = np.exp(-np.array(gaps))
    arrays = PassArrays(np.array([[[gap, 0.0]] for gap in gaps]), np.ones((1, 1)), np.array([0]))
    expected = (odds * np.log(odds / odds.mean())).mean()
    np.testing.assert_allclose(SCORES["disagreement"].compute(arrays), expected, rtol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_nothing_to_say_is_zero_and_not_negative_zero(name):
    logits_vnc = np.full((2, 1, 3), -4000.0)
    logits_vnc[..., 1] = 4000
    score_n = SCORES[name].compute(PassArrays(logits_vnc, np.ones((1, 1)), np.array([1])))
    assert score_n == 0 and not np.signbit(score_n).any()


def test_views_that_agree_disagree_by_nothing():
    logits_nc = np.random.default_rng(0).normal(size=(ROWS, CLASSES))
    arrays = PassArrays(np.stack([logits_nc] * 4), np.ones((ROWS, 1)), np.zeros(ROWS, dtype=int))
    np.testing.assert_allclose(SCORES["disagreement"].compute(arrays), 0, atol=1e-14)


def test_views_sure_of_different_classes_disagree_by_the_logarithm_of_their_number():
    logits_vnc = 1e4 * np.eye(4)[:, None, :]
    arrays = PassArrays(logits_vnc, np.ones((1, 1)), np.array([0]))
    np.testing.assert_allclose(SCORES["disagreement"].compute(arrays), np.log(4), rtol=1e-12)


def test_only_disagreement_looks_beyond_the_first_view():
    arrays, _, _ = head_outputs()
    first = compute_scores(arrays._replace(logits_vnc=arrays.logits_vnc[:1]))
    every = compute_scores(arrays)
    assert every.keys() - first.keys() == {"disagreement"}
    assert all(np.array_equal(first[name], every[name]) for name in first)


def test_computed_scores_are_float32_one_a_row():
    scores = compute_scores(head_outputs(np.float16)[0])
    assert list(scores) == list(SCORES)
    assert all(values.dtype == np.float32 and values.shape == (ROWS,) for values in scores.values())


def test_log_softmax_is_scipys():
    logits = np.random.default_rng(0).normal(scale=50, size=(4, 5, 6))
    np.testing.assert_allclose(log_softmax(logits), scipy.special.log_softmax(logits, axis=-1), rtol=1e-12, atol=1e-15)
