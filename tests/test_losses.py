"""Distillation losses against the formulas they are named after."""

import math

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F

from toolkit.distill.losses import distillation_loss, soft_target_loss
from toolkit.training.showing import Batch

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)


def logits(seed, rows=6, classes=10):
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_of(labels_b=None, logits_bc=None):
    nothing = torch.empty(0)
    return Batch(nothing, nothing if labels_b is None else labels_b, nothing, logits_bc)


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
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=0)


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
