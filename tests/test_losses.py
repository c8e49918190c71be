"""Distillation losses against the formulas they are named after."""

import math

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F

from toolkit.core.errors import UsageError
from toolkit.distill.losses import distillation_loss, soft_target_loss
from toolkit.formats.encodings import TAIL_TEMPERATURES, Encoding
from toolkit.training.showing import Batch
from toolkit.training.targets import TopK

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
