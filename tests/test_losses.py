"""Distillation losses against the formulas they are named after."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F

import toolkit
from tests.conftest import kdtool, made, refused
from tests.test_step import never_waits
from toolkit.core.errors import UsageError
from toolkit.distill.alpha import CANDIDATES
from toolkit.distill.decoupled import dkd_loss
from toolkit.distill.losses import LOSSES, distillation_loss
from toolkit.distill.plain import mse_loss, pseudo_label_loss
from toolkit.distill.relational import dist_loss
from toolkit.distill.soft_targets import soft_target_loss, standardised_loss
from toolkit.formats.encodings import TAIL_TEMPERATURES, Encoding
from toolkit.pipeline import alpha_search, student
from toolkit.training.showing import Batch
from toolkit.training.targets import TopK

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def logits(seed, rows=6, classes=10):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(labels_b=None, logits_bc=None, weights_b=None):
    nothing = torch.empty(0)
    return Batch(nothing, nothing if labels_b is None else labels_b, nothing, logits_bc, weights_b)


def soft_by_hand(student_bc, teacher_bc, temperature):
    """τ² Σ_c p_c (log p_c − log q_c), mean over the batch."""
    p_bc = scipy.special.softmax(teacher_bc.numpy() / temperature, axis=1)
    q_bc = scipy.special.softmax(student_bc.numpy() / temperature, axis=1)
    return temperature**2 * (p_bc * (np.log(p_bc) - np.log(q_bc))).sum(axis=1).mean()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_target_loss_is_the_formula(temperature):
    student_bc, teacher_bc = logits(0), logits(1)
    expected = soft_by_hand(student_bc, teacher_bc, temperature)
    assert math.isclose(soft_target_loss(student_bc, teacher_bc, temperature).item(), expected, rel_tol=1e-10)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_target_gradient_is_tau_times_the_difference_of_probabilities(temperature):
    student_bc, teacher_bc = logits(0).requires_grad_(), logits(1)
    soft_target_loss(student_bc, teacher_bc, temperature).backward()
    q_bc, p_bc = (x.detach().div(temperature).softmax(dim=1) for x in (student_bc, teacher_bc))
    torch.testing.assert_close(student_bc.grad, temperature * (q_bc - p_bc) / len(q_bc), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_gradient_is_the_losses_own(alpha):
    labels_b, teacher_bc = torch.tensor([0, 3, 1]), logits(1, rows=3, classes=4)
    loss = distillation_loss(alpha, temperature=4.0)
    student_bc = logits(0, rows=3, classes=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, batch_of(labels_b, teacher_bc)), student_bc)


def test_tau_squared_keeps_the_loss_of_scaled_logits_in_proportion():
    student_bc, teacher_bc = logits(0), logits(1)
    for temperature in TEMPERATURES:
        scaled = soft_target_loss(temperature * student_bc, temperature * teacher_bc, temperature)
        torch.testing.assert_close(scaled, temperature**2 * soft_target_loss(student_bc, teacher_bc, 1.0))


def test_at_high_temperature_it_matches_logits():
    """Hinton et al. 2015, equation 4: half the variance of the logits' difference over the classes."""
    student_bc, teacher_bc = logits(0), logits(1)
    expected = 0.5 * (student_bc - teacher_bc).var(dim=1, correction=0).mean()
    torch.testing.assert_close(soft_target_loss(student_bc, teacher_bc, 1e4), expected, rtol=1e-3, atol=0)
    single = soft_target_loss(student_bc.float(), teacher_bc.float(), 1e4)
    torch.testing.assert_close(single.double(), expected, rtol=1e-2, atol=0)


def test_a_student_that_says_what_the_teacher_says_has_no_loss():
    teacher_bc = logits(1)
    assert abs(soft_target_loss(teacher_bc + 7.0, teacher_bc, 4.0).item()) < 1e-14
    assert soft_target_loss(logits(0), teacher_bc, 4.0).item() > 0


def test_the_loss_is_a_mean_over_the_batch():
    student_bc, teacher_bc = logits(0), logits(1)
    each = [soft_target_loss(student_bc[b : b + 1], teacher_bc[b : b + 1], 4.0) for b in range(len(student_bc))]
    torch.testing.assert_close(soft_target_loss(student_bc, teacher_bc, 4.0), torch.stack(each).mean())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_extreme_logits_give_finite_losses_and_gradients(temperature):
    student_bc = torch.tensor([[6e4, -6e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher_bc = torch.tensor([[-6e4, 6e4, 0.0], [6e4, 6e4, -6e4]])
    loss = soft_target_loss(student_bc, teacher_bc, temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student_bc.grad).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_float32_is_near_float64(temperature):
    exact = soft_target_loss(logits(0), logits(1), temperature)
    single = soft_target_loss(logits(0).float(), logits(1).float(), temperature)
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(dtype):
    student_bc, teacher_bc = logits(0).to(dtype), logits(1).to(dtype)
    for teacher in (teacher_bc, top(teacher_bc.double(), 3)):
        loss = soft_target_loss(student_bc, teacher, 4.0)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, soft_target_loss(student_bc.float(), teacher, 4.0))


def test_alpha_0_never_looks_at_the_teacher():
    labels_b = torch.tensor([1, 2, 3, 4, 5, 6])
    loss = distillation_loss(alpha=0.0, temperature=4.0)(logits(0), batch_of(labels_b, logits_bc=None))
    assert torch.equal(loss, F.cross_entropy(logits(0), labels_b))


def test_alpha_1_never_looks_at_the_labels():
    loss = distillation_loss(alpha=1.0, temperature=4.0)(logits(0), batch_of(None, logits(1)))
    assert torch.equal(loss, soft_target_loss(logits(0), logits(1), 4.0))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_alpha_weighs_the_teacher_against_the_labels(alpha, temperature):
    student_bc, teacher_bc, labels_b = logits(0), logits(1), torch.tensor([1, 2, 3, 4, 5, 6])
    log_q_bc = scipy.special.log_softmax(student_bc.numpy(), axis=1)
    hard = -log_q_bc[np.arange(6), labels_b.numpy()].mean()
    expected = (1 - alpha) * hard + alpha * soft_by_hand(student_bc, teacher_bc, temperature)
    loss = distillation_loss(alpha, temperature)(student_bc, batch_of(labels_b, teacher_bc))
    assert math.isclose(loss.item(), expected, rel_tol=1e-10)


# targets that keep the K largest logits


TOP_TEMPERATURES = (1.0, 1.5, 2.0, 4.0, 20.0)


def top(logits_bc, kept):
    """Its K largest and the exact tail, not rounded to float16."""
    values_bk, indices_bk = logits_bc.sort(dim=1, descending=True)
    tail = [(values_bk[:, kept:] / tau).logsumexp(dim=1) for tau in TAIL_TEMPERATURES]
    return TopK(values_bk[:, :kept], indices_bk[:, :kept], torch.stack(tail, dim=1))


def outcomes(probabilities_bc, indices_bk):
    """Probabilities of the kept classes, and of any other."""
    kept_bk = np.take_along_axis(probabilities_bc, indices_bk, axis=1)
    others_bc = probabilities_bc.copy()
    np.put_along_axis(others_bc, indices_bk, 0, axis=1)
    return np.concatenate([kept_bk, others_bc.sum(axis=1, keepdims=True)], axis=1)


def top_by_hand(student_bc, teacher_bc, kept, temperature):
    """τ² Σ p (log p − log q) over the K classes the teacher finds likeliest and any other, mean over the batch."""
    indices_bk = np.argsort(-teacher_bc.numpy(), axis=1)[:, :kept]
    p, q = (
        outcomes(scipy.special.softmax(x.numpy() / temperature, axis=1), indices_bk) for x in (teacher_bc, student_bc)
    )
    return temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=1).mean()


@pytest.mark.parametrize("temperature", TAIL_TEMPERATURES)
@pytest.mark.parametrize("kept", [1, 3, 9])
def test_the_top_k_loss_is_the_formula_at_the_stored_temperatures(kept, temperature):
    student_bc, teacher_bc = logits(0), logits(1)
    expected = top_by_hand(student_bc, teacher_bc, kept, temperature)
    loss = soft_target_loss(student_bc, top(teacher_bc, kept), float(temperature))
    assert math.isclose(loss.item(), expected, rel_tol=1e-10)


@pytest.mark.parametrize("temperature", [1.25, 1.5, 3.0, 6.0, 12.0, 20.0])
@pytest.mark.parametrize("kept", [8, 32])
def test_the_top_k_loss_is_near_the_formula_in_between(kept, temperature):
    student_bc, teacher_bc = logits(0, 200, 100), logits(1, 200, 100)
    expected = top_by_hand(student_bc, teacher_bc, kept, temperature)
    loss = soft_target_loss(student_bc, top(teacher_bc, kept), temperature)
    assert math.isclose(loss.item(), expected, rel_tol=0.01)


@pytest.mark.parametrize("temperature", TOP_TEMPERATURES)
def test_top_k_with_one_class_left_out_is_the_full_loss(temperature):
    student_bc, teacher_bc = logits(0).requires_grad_(), logits(1)
    losses = [soft_target_loss(student_bc, teacher, temperature) for teacher in (teacher_bc, top(teacher_bc, 9))]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    full, kept = (torch.autograd.grad(loss, student_bc)[0] for loss in losses)
    torch.testing.assert_close(kept, full, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", TAIL_TEMPERATURES)
def test_the_top_k_loss_grows_with_k_up_to_the_full_one(temperature):
    student_bc, teacher_bc = logits(0), logits(1)
    losses = [soft_target_loss(student_bc, top(teacher_bc, kept), temperature).item() for kept in range(1, 10)]
    assert losses == sorted(losses)
    assert losses[-1] <= soft_target_loss(student_bc, teacher_bc, temperature).item() * (1 + 1e-12)


@pytest.mark.parametrize("temperature", TOP_TEMPERATURES)
@pytest.mark.parametrize("kept", [1, 3, 9])
def test_the_gradient_of_the_top_k_loss_is_its_own(kept, temperature):
    teacher, student_bc = top(logits(1), kept), logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_target_loss(s, teacher, temperature), student_bc)


@pytest.mark.parametrize("temperature", TOP_TEMPERATURES)
@pytest.mark.parametrize("kept", [1, 3])
def test_a_student_sure_of_or_blind_to_the_top_k_has_finite_gradients(kept, temperature):
    teacher_bc = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]] * 3)
    inside, outside = torch.zeros(5), torch.zeros(5)
    inside[:kept], outside[kept:] = 6e4, 6e4
    student_bc = torch.stack([inside, outside, torch.zeros(5)]).requires_grad_()
    loss = soft_target_loss(student_bc, top(teacher_bc, kept), temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student_bc.grad).all()
    outward = student_bc.grad[1].reshape(5)
    assert (outward[:kept] < 0).all()  # it still learns where to go
    assert (outward[kept:] > 0).all()


@pytest.mark.parametrize("temperature", [4.0, 100.0, 1e4])
def test_top_k_in_float32_is_near_float64(temperature):
    student_bc, teacher = logits(0, 20, 100), top(logits(1, 20, 100), 8)
    exact = soft_target_loss(student_bc, teacher, temperature)
    rounded = TopK(teacher.values_bk.float(), teacher.indices_bk, teacher.tail_b4.float())
    single = soft_target_loss(student_bc.float(), rounded, temperature)
    torch.testing.assert_close(single.double(), exact, rtol=1e-6 * temperature, atol=0)


def test_a_student_that_says_what_a_top_k_teacher_says_has_no_loss():
    teacher_bc = logits(1)
    assert abs(soft_target_loss(teacher_bc + 7.0, top(teacher_bc, 3), 4.0).item()) < 1e-14


@pytest.mark.parametrize("temperature", [0.5, 0.999])
def test_top_k_refuses_temperatures_below_1(temperature):
    with pytest.raises(UsageError, match=r"--temperature 0\..* from 1. Run: .* --encoding float16 --force"):
        soft_target_loss(logits(0), top(logits(1), 3), temperature)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_distillation_takes_top_k_targets_as_a_batch_gives_them(alpha):
    student_bc, teacher_bc, labels_b = logits(0), logits(1), torch.tensor([1, 2, 3, 4, 5, 6])
    encoding = Encoding.parse("topk:3", 10)
    arrays = encoding.encode(teacher_bc.numpy())
    values, indices, tail = (torch.from_numpy(arrays[f"topk/{name}"]) for name in ("values", "indices", "tail"))
    loss = distillation_loss(alpha, 4.0)(student_bc, batch_of(labels_b, TopK(values, indices.long(), tail)))
    soft = top_by_hand(student_bc, teacher_bc, 3, 4.0)
    expected = (1 - alpha) * F.cross_entropy(student_bc, labels_b).item() + alpha * soft
    assert math.isclose(loss.item(), expected, rel_tol=0.01)


# the other losses, each against its paper's formula written out row by row in numpy

LABELS = torch.tensor([1, 2, 3, 4, 5, 6])


def kl_by_hand(p, q):
    return float((p * (np.log(p) - np.log(q))).sum())


def dkd_by_hand(student_bc, teacher_bc, temperature, beta, labels_b=LABELS):
    """Of each row τ²·(KL over label and others + β·KL over the others, made to sum to 1): Zhao et al. 2022."""
    losses = []
    for student_c, teacher_c, label in zip(student_bc.numpy(), teacher_bc.numpy(), labels_b.tolist(), strict=True):
        p, q = (scipy.special.softmax(x / temperature) for x in (teacher_c, student_c))
        target = kl_by_hand(*(np.array([x[label], 1 - x[label]]) for x in (p, q)))
        rest = kl_by_hand(*(np.delete(x, label) / np.delete(x, label).sum() for x in (p, q)))
        losses.append(temperature**2 * (target + beta * rest))
    return np.array(losses)


def dist_by_hand(student_bc, teacher_bc, temperature, beta):
    """τ²·(1 − mean correlation of rows + β·(1 − mean correlation of classes)): Huang et al. 2022."""
    p, q = (scipy.special.softmax(x.numpy() / temperature, axis=1) for x in (teacher_bc, student_bc))
    inter, intra = (
        np.mean([1 - scipy.stats.pearsonr(*pair)[0] for pair in zip(*both, strict=True)])
        for both in ((p, q), (p.T, q.T))
    )
    return temperature**2 * (inter + beta * intra)


def standardised_by_hand(student_bc, teacher_bc, temperature):
    """Of each row τ²·KL of z-scores, the deviation with c − 1 below: Sun et al. 2024, as in their code."""
    z = [scipy.stats.zscore(x.numpy(), axis=1, ddof=1) / temperature for x in (teacher_bc, student_bc)]
    rows = zip(*(scipy.special.softmax(x, axis=1) for x in z), strict=True)
    return np.array([temperature**2 * kl_by_hand(p, q) for p, q in rows])


def hard_by_hand(student_bc, teacher_bc):
    pairs = zip(student_bc.numpy(), teacher_bc.numpy(), strict=True)
    return np.array([-scipy.special.log_softmax(student_c)[np.argmax(teacher_c)] for student_c, teacher_c in pairs])


def near(loss, expected):
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.0, 1.0, 8.0])
def test_dkd_is_the_formula(temperature, beta):
    expected = dkd_by_hand(logits(0), logits(1), temperature, beta).mean()
    near(dkd_loss(logits(0), logits(1), LABELS, temperature, beta), expected)


def test_dkd_with_each_rows_own_beta_is_kd():
    """Zhao et al. 2022: KD = TCKD + (1 − p(label))·NCKD."""
    for row in range(6):
        student_1c, teacher_1c, label_1 = logits(0)[row : row + 1], logits(1)[row : row + 1], LABELS[row : row + 1]
        beta = 1 - (teacher_1c / 4.0).softmax(dim=1)[0, label_1].item()
        torch.testing.assert_close(
            dkd_loss(student_1c, teacher_1c, label_1, 4.0, beta), soft_target_loss(student_1c, teacher_1c, 4.0)
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_dist_is_the_formula(temperature, beta):
    expected = dist_by_hand(logits(0), logits(1), temperature, beta)
    near(dist_loss(logits(0), logits(1), temperature, beta), expected)


def test_dist_of_one_row_compares_its_classes_alone():
    row, other = logits(0, rows=1), logits(1, rows=1)
    p, q = (scipy.special.softmax(x.numpy()[0] / 4) for x in (row, other))
    near(dist_loss(row, other, 4.0, beta=3.0), 16 * (1 - scipy.stats.pearsonr(p, q)[0]))


def test_dist_sees_a_class_that_no_row_finds_likely():
    """Correlations do not change with scale: e⁻³⁰⁰ is no number of float32."""
    student_bc, teacher_bc = logits(0), logits(1)
    unlikely = torch.zeros(10, dtype=torch.float64)
    unlikely[3] = -300
    exact = dist_loss(student_bc + unlikely, teacher_bc + unlikely, 1.0)
    single = dist_loss((student_bc + unlikely).float(), (teacher_bc + unlikely).float(), 1.0)
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)
    assert abs(exact - dist_loss(student_bc, teacher_bc, 1.0)) < 0.2


def test_a_class_whose_probabilities_are_all_the_same_pulls_nowhere_and_counts_as_uncorrelated():
    student_bc = torch.tensor([[0.0, 0.0, 0.0]] * 4, requires_grad=True)
    loss = dist_loss(student_bc, logits(1, 4, 3).float(), 4.0)
    loss.backward()
    assert loss.item() == 32 and (student_bc.grad == 0).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kd_std_is_the_formula(temperature):
    expected = standardised_by_hand(logits(0), logits(1), temperature).mean()
    near(standardised_loss(logits(0), logits(1), temperature), expected)


def test_kd_std_does_not_see_scale_and_shift():
    loss = standardised_loss(logits(0), logits(1), 2.0)
    torch.testing.assert_close(standardised_loss(5 * logits(0) + 3, 0.1 * logits(1) - 2, 2.0), loss)


def test_mse_is_the_formula_and_what_kd_becomes_at_high_temperature():
    """Twice KD's limit, half of the variance of the difference, and the square of its mean."""
    difference_bc = (logits(0) - logits(1)).numpy()
    near(mse_loss(logits(0), logits(1)), (difference_bc**2).mean(axis=1).mean())
    limit = soft_target_loss(logits(0), logits(1), 1e5).item()
    expected = 2 * limit + (difference_bc.mean(axis=1) ** 2).mean()
    assert math.isclose(mse_loss(logits(0), logits(1)).item(), expected, rel_tol=1e-3)


def test_hard_is_the_formula_and_what_kds_targets_become_at_low_temperature():
    near(pseudo_label_loss(logits(0), logits(1)), hard_by_hand(logits(0), logits(1)).mean())
    probabilities_bc = (logits(1) / 1e-3).softmax(dim=1)
    torch.testing.assert_close(pseudo_label_loss(logits(0), logits(1)), F.cross_entropy(logits(0), probabilities_bc))


# all of them


def taught_by(name, alpha=1.0, temperature=4.0, **more):
    return distillation_loss(alpha, temperature, name, **more)


def whole_by_hand(name, student_bc, batch, alpha, temperature=4.0, beta=None):
    """Of each row (1 − α)·CE + α·L, with the loss's own beta where none is given; dist's is the same of each row."""
    labels_b, teacher_bc = batch.labels_b, batch.logits_bc
    every = range(len(labels_b))
    if name == "kd":
        taught_b = [soft_by_hand(student_bc[b : b + 1], teacher_bc[b : b + 1], temperature) for b in every]
    elif name == "dkd":
        taught_b = dkd_by_hand(student_bc, teacher_bc, temperature, 8.0 if beta is None else beta, labels_b)
    elif name == "dist":
        taught_b = dist_by_hand(student_bc, teacher_bc, temperature, 1.0 if beta is None else beta)
    elif name == "kd-std":
        taught_b = standardised_by_hand(student_bc, teacher_bc, temperature)
    elif name == "mse":
        taught_b = ((student_bc - teacher_bc) ** 2).mean(dim=1).numpy()
    else:
        taught_b = hard_by_hand(student_bc, teacher_bc)
    hard_b = -scipy.special.log_softmax(student_bc.numpy(), axis=1)[np.array(every), labels_b.numpy()]
    return (1 - alpha) * hard_b + alpha * np.array(taught_b)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.weights])
def test_weights_count_each_row_as_often(name, alpha):
    """Σ w_i·((1 − α)·CE_i + α·l_i) / b, with the loss's own beta."""
    weights_b, student_bc = np.array([0.0, 0.5, 1.0, 2.5, 1.5, 0.5]), logits(0)
    each_b = whole_by_hand(name, student_bc, batch_of(LABELS, logits(1)), alpha)
    for weights, expected in ((None, each_b.mean()), (torch.from_numpy(weights_b), (weights_b * each_b).mean())):
        near(taught_by(name, alpha)(student_bc, batch_of(LABELS, logits(1), weights)), expected)


def test_weights_are_refused_by_a_loss_that_is_no_mean_over_rows():
    without = [name for name, kind in LOSSES.items() if not kind.weights]
    assert without == ["dist"] == [name for name, kind in LOSSES.items() if not kind.rows_apart]
    near(taught_by("dist")(logits(0), batch_of(LABELS, logits(1))), dist_by_hand(logits(0), logits(1), 4.0, 1.0))
    with pytest.raises(UsageError, match="--weights: --loss dist compares the rows"):
        taught_by("dist")(logits(0), batch_of(LABELS, logits(1), torch.ones(6)))


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_every_losss_gradient_is_its_own(name, alpha):
    batch = batch_of(torch.tensor([0, 3, 1]), logits(1, rows=3, classes=4))
    loss = taught_by(name, alpha)
    assert torch.autograd.gradcheck(lambda s: loss(s, batch), logits(0, rows=3, classes=4).requires_grad_())


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("temperature", [0.5, 4.0, 1e3])
def test_every_loss_and_gradient_is_finite_at_extreme_logits(name, temperature):
    rows = [[1e4, -1e4, 0.0, 0.0], [0.0] * 4, [7.0] * 4, [-1e4] * 4, [1e4, 1e4, -1e4, -1e4], [1e-6, 0.0, 0.0, 0.0]]
    student_bc = torch.tensor([row for row in rows for _ in rows], requires_grad=True)
    teacher_bc = torch.tensor([row for _ in rows for row in rows])
    labels_b = torch.arange(len(student_bc)) % 4
    loss = taught_by(name, temperature=temperature)(student_bc, batch_of(labels_b, teacher_bc))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student_bc.grad).all()


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("temperature", [4.0, 100.0])
def test_every_loss_and_gradient_in_float32_is_near_float64(name, temperature):
    loss, found = taught_by(name, temperature=temperature), []
    for dtype in (torch.float64, torch.float32):
        student_bc = logits(0).to(dtype).requires_grad_()
        value = loss(student_bc, batch_of(LABELS, logits(1).to(dtype)))
        value.backward()
        found.append((value.double(), student_bc.grad.double()))
    (exact, gradient), (single, its) = found
    torch.testing.assert_close(single, exact, rtol=2e-4, atol=0)
    assert (its - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_loss_of_lower_precision_is_computed_in_float32(name, dtype):
    student_bc, batch = logits(0).to(dtype), batch_of(LABELS, logits(1).to(dtype))
    assert torch.equal(taught_by(name)(student_bc, batch), taught_by(name)(student_bc.float(), batch))


@pytest.mark.parametrize("name", list(LOSSES))
def test_no_loss_makes_the_host_wait(name):
    student_bc, batch = logits(0).requires_grad_(), batch_of(LABELS, logits(1))
    with never_waits():
        taught_by(name, alpha=0.5)(student_bc, batch).backward()


@pytest.mark.parametrize("name", list(LOSSES))
def test_top_k_targets_are_taken_by_the_losses_that_are_exact_on_them_and_refused_by_name(name):
    batch = batch_of(LABELS, top(logits(1), 3))
    if LOSSES[name].top_k:
        assert torch.isfinite(taught_by(name)(logits(0), batch))
    else:
        with pytest.raises(UsageError, match=rf"--loss {name}: needs .* topk:3. Use --loss kd or hard, or run: kdtool"):
            taught_by(name)(logits(0), batch)


def test_hard_needs_no_more_than_the_largest_logit():
    assert torch.equal(pseudo_label_loss(logits(0), top(logits(1), 1)), pseudo_label_loss(logits(0), logits(1)))


@pytest.mark.parametrize("name", [name for name in toolkit.__all__ if name.endswith("loss")])
def test_every_loss_is_public(name):
    functions = [distillation_loss, *(kind.function for kind in LOSSES.values())]
    assert getattr(toolkit, name) in functions and len(functions) == sum(n.endswith("loss") for n in toolkit.__all__)


# on the command line


@pytest.fixture(scope="module")
def work(digits, tmp_path_factory):
    """A copy of the digits workspace, with the top-k targets of a subset `few`."""
    workspace = shutil.copytree(digits, tmp_path_factory.mktemp("losses") / "work")
    common = ("-w", workspace, "--dataset", "digits")
    made("build-subset", *common, "--frac", "0.2", "--name", "few")
    made("cache-teacher", *common, "--subset", "few", "--views", "2", "--encoding", "topk:3", "--force")
    return workspace


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_trains_a_student(name, work):
    """In 12 epochs far above chance, which is 10 %, and named after what decides it."""
    run = made("distill", "-w", work, "--subset", "third", "--loss", name, "--epochs", "12")
    assert run["top1"] > 70 and run["agreement"] > 70
    tau = "-t4" if LOSSES[name].temperature else ""
    assert f"digits-resnet8{'' if name == 'kd' else f'-{name}'}-a1{tau}-exact9-e12" in run["name"]
    assert run["temperature"] == (4.0 if LOSSES[name].temperature else None)
    found = {key: run[key] for key in ("loss", "beta") if key in run}
    assert found == ({} if name == "kd" else {"loss": name, "beta": LOSSES[name].beta})


# what is asked for, and what other than the loss's own default: (loss, alpha, temperature, beta)
ASKED = [
    ("kd", 1.0, 4.0, None),
    ("kd", 0.5, 2.0, None),
    ("dkd", 1.0, 2.0, None),
    ("dkd", 0.25, 4.0, 2.0),
    ("dist", 1.0, 4.0, None),
    ("dist", 0.5, 2.0, 3.0),
    ("kd-std", 0.25, 2.0, None),
    ("mse", 0.5, 4.0, None),
    ("hard", 0.25, 4.0, None),
]


def in_words(name, temperature, beta):
    given = ("--loss", name, "--temperature", temperature)
    return given if beta is None else (*given, "--beta", beta)


def batches_seen(monkeypatch, module):
    """Of each loss that the module asks for, the student's logits and the batch it is first given, and its value."""
    seen, honest = [], module.distillation_loss

    def watched(*asked):
        loss, first = honest(*asked), []

        def watching(student_bc, batch):
            value = loss(student_bc, batch)
            if not first:
                first.append((student_bc.detach().double(), batch, value.item()))
                seen.extend(first)
            return value

        return watching

    monkeypatch.setattr(module, "distillation_loss", watched)
    return seen


def doubled(batch):
    return batch_of(batch.labels_b, batch.logits_bc.double())


@pytest.mark.parametrize(("name", "alpha", "temperature", "beta"), ASKED)
def test_a_student_trains_on_the_loss_that_was_asked_for(name, alpha, temperature, beta, work, monkeypatch):
    """One step: what metrics.jsonl tells is the formula of what the step saw."""
    seen = batches_seen(monkeypatch, student)
    words = ("--subset", "third", "--alpha", alpha, *in_words(name, temperature, beta), "--precision", "float32")
    run = made("distill", "-w", work, *words, "--iterations", "1")
    (student_bc, batch, _), told = seen[0], json.loads((Path(run["path"]) / "metrics.jsonl").read_text())
    assert len(seen) == 1 and len(student_bc) == 128
    expected = whole_by_hand(name, student_bc, doubled(batch), alpha, temperature, beta).mean()
    assert told["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("name", "alpha", "temperature", "beta"), [ASKED[1], ASKED[3], ASKED[6]])
def test_a_search_tries_the_loss_that_was_asked_for_at_every_alpha(name, alpha, temperature, beta, work, monkeypatch):
    seen = batches_seen(monkeypatch, alpha_search)
    words = ("--subset", "third", "--alpha", "search", *in_words(name, temperature, beta), "--precision", "float32")
    run = made("distill", "-w", work, *words, "--epochs", "1")
    trials = json.loads((Path(run["path"]) / "run.json").read_text())["alpha_search"]["trials"]
    assert len(seen) == len(trials) == len(CANDIDATES)
    for trial, (student_bc, batch, loss) in zip(trials, seen, strict=True):
        expected = whole_by_hand(name, student_bc, doubled(batch), trial["alpha"], temperature, beta).mean()
        assert loss == pytest.approx(expected, rel=1e-4)


def test_beta_is_a_setting_of_the_run(work):
    words = ("distill", "-w", work, "--subset", "third", "--loss", "dkd", "--epochs", "1")
    own, other = made(*words), made(*words, "--beta", "2")
    assert "-dkd-b2-a1-" in other["name"] and "-dkd-a1-" in own["name"]
    assert made(*words, "--beta", "8") == own
    refused(kdtool(*words, "--beta", "3", "--name", own["name"]), 1, "beta 8.0 → 3.0")


def test_without_the_teacher_neither_temperature_nor_loss_make_another_run(work):
    words = ("distill", "-w", work, "--subset", "third", "--alpha", "0", "--epochs", "1")
    first = made(*words)
    assert "no-kd" in first["name"] and first["temperature"] is None
    assert made(*words, "--temperature", "7") == made(*words, "--loss", "mse") == first
    path = work / "runs" / first["name"] / "run.json"  # as kdtool 0.4.0 wrote it
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "settings": {**record["settings"], "temperature": 4.0}}))
    assert made(*words) == first


@pytest.mark.parametrize("name", list(LOSSES))
def test_top_k_targets_that_a_loss_is_not_exact_on_are_refused_before_any_training(name, work):
    words = ("distill", "-w", work, "--subset", "few", "--loss", name, "--epochs", "1", "--name", f"few-{name}")
    if LOSSES[name].top_k:
        assert made(*words)["loss" if name != "kd" else "alpha"] in (name, 1.0)
        return
    refused(kdtool(*words), 2, f"--loss {name}", "topk:3", "cache-teacher --subset few", "--encoding int8", "--loss kd")
    assert not (work / "runs" / f"few-{name}").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--loss", "dkdd"), "did you mean dkd?"),
        (("--beta", "2"), "--beta 2 is dkd's and dist's: --loss kd has none"),
        (("--loss", "hard", "--beta", "2"), "--loss hard has none"),
        (("--loss", "dist", "--beta", "-1"), "--beta must be at least 0, got -1"),
        (("--loss", "dist", "--weights"), "--weights: --loss dist compares the rows of a batch"),
    ],
    ids=str,
)
def test_what_a_loss_cannot_do_is_refused_in_one_line(words, said, work):
    refused(kdtool("distill", "-w", work, "--subset", "third", *words), 2, said)
