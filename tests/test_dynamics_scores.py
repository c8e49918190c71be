"""Every score of a training's dynamics against plain loops, one row at a time, and on trainings of known score."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F

from toolkit.pipeline import score_compute
from toolkit.scores import AT_INITIALISATION, DYNAMICS, SCORES, from_dynamics

SEEDS, EPOCHS, ROWS, CLASSES, FEATURES = 3, 14, 25, 5, 6


@pytest.fixture(scope="module")
def training():
    """Logits (s, e, n, c), features (s, n, d) and labels of trainings that never happened."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(SEEDS, EPOCHS, ROWS, CLASSES))
    labels_n = rng.integers(0, CLASSES, ROWS)
    logits[:, :, 0, labels_n[0]] -= 50  # never learned
    logits[:, :, 1, labels_n[1]] += 50  # never wrong
    return logits, rng.normal(size=(SEEDS, ROWS, FEATURES)), labels_n


def seeds_mean(training, of_row):
    """What a score is by its definition: the mean over seeds of `of_row(the row's logits (e, c), its label)`."""
    logits, _, labels_n = training
    return [
        statistics.fmean(of_row(logits[seed, :, row], int(labels_n[row])) for seed in range(SEEDS))
        for row in range(ROWS)
    ]


def softmax(logits_c):
    powers = [math.exp(value - max(logits_c)) for value in logits_c]
    return [power / sum(powers) for power in powers]


def at_labels(logits, labels_n):
    return np.take_along_axis(logits, labels_n[None, None, :, None], axis=3)[..., 0]


def largest_other(logits, labels_n):
    masked = logits.copy()
    np.put_along_axis(masked, np.broadcast_to(labels_n[None, None, :, None], (SEEDS, EPOCHS, ROWS, 1)), -np.inf, axis=3)
    return masked.max(axis=3)


def recorded_kl(logits):
    log_p = scipy.special.log_softmax(logits, axis=3)
    kl = np.full(logits.shape[:3], np.nan)
    kl[:, 1:] = (np.exp(log_p[:, 1:]) * (log_p[:, 1:] - log_p[:, :-1])).sum(axis=3)
    return kl


def test_forgetting_counts_each_fall_from_right_to_wrong(training):
    def of_row(logits_ec, label):
        right = [max(range(CLASSES), key=lambda c: logits_c[c]) == label for logits_c in logits_ec]
        falls = 0
        for before, now in pairwise(right):
            falls += before and not now
        return falls if any(right) else EPOCHS

    logits, _, labels_n = training
    computed_n = from_dynamics.forgetting(logits.argmax(axis=3) == labels_n)
    np.testing.assert_allclose(computed_n, seeds_mean(training, of_row), rtol=1e-12)


@pytest.mark.parametrize(
    ("history", "events"),
    [("0000", 4), ("1111", 0), ("0111", 0), ("0001", 0), ("1010", 2), ("0101", 1), ("1000", 1), ("1011", 1)],
)
def test_forgetting_of_known_histories(history, events):
    correct_sen = np.array([[[letter == "1"] for letter in history]])
    assert from_dynamics.forgetting(correct_sen) == [events]


def test_never_learned_is_hardest_whatever_was_forgotten():
    for epochs in range(2, 8):
        every = np.array([[int(bit) for bit in f"{number:0{epochs}b}"] for number in range(2**epochs)], dtype=bool)
        scores = from_dynamics.forgetting([every.T])
        assert scores[0] == epochs and (scores[1:] < epochs).all()


def test_el2n_is_the_mean_over_seeds(training):
    logits, _, labels_n = training
    p = scipy.special.softmax(logits, axis=3)
    el2n_sen = np.linalg.norm(p - np.eye(CLASSES)[labels_n], axis=3).astype(np.float32)

    def of_row(logits_ec, label):
        return math.sqrt(sum((p - (c == label)) ** 2 for c, p in enumerate(softmax(logits_ec[4]))))

    np.testing.assert_allclose(from_dynamics.el2n(el2n_sen[:, 4]), seeds_mean(training, of_row), rtol=1e-6)


def test_grand_is_the_mean_of_the_seeds_gradient_norms(training):
    _, features_snd, labels_n = training
    rng = np.random.default_rng(1)
    heads = [(rng.normal(size=(CLASSES, FEATURES)), rng.normal(size=CLASSES)) for _ in range(SEEDS)]
    logits_snc = [features @ w.T + b for features, (w, b) in zip(features_snd, heads, strict=True)]
    expected = np.zeros(ROWS)
    for features_nd, head in zip(features_snd, heads, strict=True):
        for row in range(ROWS):
            weight, bias = (torch.tensor(part, requires_grad=True) for part in head)
            loss = F.cross_entropy(F.linear(torch.tensor(features_nd[row]), weight, bias), torch.tensor(labels_n[row]))
            loss.backward()
            expected[row] += torch.cat([weight.grad.flatten(), bias.grad]).norm().item() / SEEDS
    np.testing.assert_allclose(from_dynamics.grand(logits_snc, features_snd, labels_n), expected, rtol=1e-10)


def test_grand_at_a_snapshot_is_the_passs_grand(training):
    logits, features_snd, labels_n = training
    from toolkit.scores.from_pass import PassArrays

    of_pass = SCORES["grand"].compute(PassArrays(logits[:1, 3], features_snd[0], labels_n))
    assert np.array_equal(from_dynamics.grand(logits[:1, 3], features_snd[:1], labels_n), of_pass)


def test_aum_is_the_margin_averaged_over_epochs_and_negated(training):
    def of_row(logits_ec, label):
        margins = [logits_c[label] - max(z for c, z in enumerate(logits_c) if c != label) for logits_c in logits_ec]
        return -sum(margins) / EPOCHS

    logits, _, labels_n = training
    computed_n = from_dynamics.aum(at_labels(logits, labels_n), largest_other(logits, labels_n))
    np.testing.assert_allclose(computed_n, seeds_mean(training, of_row), rtol=1e-12)


@pytest.mark.parametrize("window", [2, 10, EPOCHS, 100])
def test_dyn_unc_is_the_windows_standard_deviation_averaged(training, window):
    def of_row(logits_ec, label):
        p_e = [softmax(logits_c)[label] for logits_c in logits_ec]
        length = min(window, EPOCHS)
        return statistics.fmean(statistics.stdev(p_e[k : k + length]) for k in range(EPOCHS - length + 1))

    logits, _, labels_n = training
    loss_sen = -at_labels(scipy.special.log_softmax(logits, axis=3), labels_n)
    computed_n = from_dynamics.dyn_unc(loss_sen, window=window)
    np.testing.assert_allclose(computed_n, seeds_mean(training, of_row), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("window", [3, 10, EPOCHS, 100])
def test_tdds_weighs_how_the_windows_differences_vary(training, window):
    def of_row(logits_ec, label):
        p_ec = [softmax(logits_c) for logits_c in logits_ec]
        length, total = min(window, EPOCHS), 0.0
        for k in range(EPOCHS - length + 1):
            kls = [
                abs(sum(now * math.log(now / then) for now, then in zip(p_ec[t], p_ec[t - 1], strict=True)))
                for t in range(k + 1, k + length)
            ]
            mean = sum(kls) / (length - 1)
            norm = math.sqrt(sum((kl - mean) ** 2 for kl in kls))
            total += 0.9 * (1 - 0.9) ** (EPOCHS - length - k) * norm
        return total

    logits, _, _ = training
    computed_n = from_dynamics.tdds(recorded_kl(logits), window=window)
    np.testing.assert_allclose(computed_n, seeds_mean(training, of_row), rtol=1e-8)
    assert np.isfinite(computed_n).all()


def test_closed_forms():
    steady, swinging = np.full(12, 0.5), np.tile([0.2, 0.8], 6)
    loss_sen = -np.log(np.stack([steady, swinging], axis=1))[None]
    # ten values, five at each of two places 0.3 from their mean
    np.testing.assert_allclose(from_dynamics.dyn_unc(loss_sen), [0, math.sqrt(10 * 0.09 / 9)], atol=1e-12)
    kl_sen = np.stack([np.full(12, 0.7), np.tile([0.0, 1.0], 6)], axis=1)[None].copy()
    kl_sen[:, 0] = np.nan
    # nine values, four or five at each end: √(4·5/9) in every one of three windows
    expected = math.sqrt(20 / 9) * 0.9 * (1 + 0.1 + 0.01)
    np.testing.assert_allclose(from_dynamics.tdds(kl_sen), [0, expected], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(from_dynamics.aum([[[3.0, 1.0]]], [[[1.0, 3.0]]]), [-2, 2])


def test_high_means_hard():
    """Row 0 is learned at once and stays so; row 1 comes and goes."""
    epochs = 12
    p = np.stack([np.full(epochs, 0.98), np.tile([0.1, 0.1, 0.9], 4)], axis=1)
    logits = np.stack([np.log(p), np.log(1 - p)], axis=2)[None]
    arrays = {
        "correct": p[None] > 0.5,
        "loss": -np.log(p)[None],
        "logit_true": logits[..., 0],
        "logit_other": logits[..., 1],
        "kl": recorded_kl(logits),
        "el2n": ((1 - p) * math.sqrt(2))[None, 3],
    }
    for name, score in DYNAMICS.items():
        if score.of == "snapshot":
            easy, hard = score.compute(logits[:, 3], np.ones((1, 2, 4)), np.zeros(2, dtype=int))
        else:
            easy, hard = score.compute(*(arrays[need] for need in score.needs))
        assert hard > easy, name


@pytest.mark.parametrize("name", DYNAMICS)
def test_one_seed_at_a_time_is_enough_and_float32_is_read_as_it_is(name, training):
    """What the pipeline gives: generators of float32 arrays, one seed each."""
    logits, features_snd, labels_n = training
    narrow = logits.astype(np.float32)
    arrays = {
        "correct": (logits.argmax(axis=3) == labels_n).astype(np.uint8),
        "loss": -at_labels(scipy.special.log_softmax(narrow, axis=3), labels_n),
        "logit_true": at_labels(narrow, labels_n),
        "logit_other": largest_other(narrow, labels_n),
        "kl": recorded_kl(narrow).astype(np.float32),
        "el2n": np.abs(narrow[:, 0, :, 0]),
        "logits": narrow[:, 2],
        "features": features_snd.astype(np.float16),
    }
    score = DYNAMICS[name]
    more = (labels_n,) if score.of == "snapshot" else ()
    whole = score.compute(*(arrays[need] for need in score.needs), *more)
    lazily = score.compute(*((seed for seed in arrays[need]) for need in score.needs), *more)
    assert whole.dtype == np.float64 and whole.shape == (ROWS,)
    assert np.array_equal(whole, lazily)


class _Blocks:
    """What DynamicsReader gives of the epochs, in blocks of 7 rows, and how many it was asked for."""

    def __init__(self, arrays):
        self.arrays, self.asked = arrays, []
        self.record = type("Record", (), {"seeds": list(range(SEEDS))})

    def block(self, name, number):
        self.asked.append(name)
        return self.arrays[name][7 * number : 7 * (number + 1)]

    def blocks(self, name):
        return (self.block(name, number) for number in range(-(-len(self.arrays[name]) // 7)))


@pytest.mark.parametrize("name", [name for name, score in DYNAMICS.items() if score.of != "snapshot"])
def test_epochs_are_scored_block_by_block_as_all_rows_at_once(name):
    rng, score, told = np.random.default_rng(0), DYNAMICS[name], []
    series = {need: rng.random(size=(SEEDS, EPOCHS, ROWS)).astype(np.float32) for need in score.needs}
    if name == "forgetting":
        series = {need: (values > 0.5).astype(np.uint8) for need, values in series.items()}
    arrays = {"labels": np.zeros(ROWS, int)}
    for need, values in series.items():
        arrays |= {f"seeds/{s}/epochs/{e + 1}/{need}": values[s, e] for s in range(SEEDS) for e in range(EPOCHS)}
    first, dynamics = EPOCHS - 2, _Blocks(arrays)
    shown = {
        need: values[:, :first] if score.of == "training" else values[:, first - 1] for need, values in series.items()
    }
    in_blocks = score_compute._of_epochs(dynamics, name, first, told.append)
    np.testing.assert_array_equal(in_blocks, score.compute(*(shown[need] for need in score.needs)))
    assert told == [7, 7, 7, 4]
    epochs = first if score.of == "training" else 1
    assert len(dynamics.asked) == 4 * (1 + SEEDS * epochs * len(score.needs))  # each once


def test_too_few_epochs_and_no_seeds_are_errors():
    with pytest.raises(ValueError, match="at least 2 epochs, got 1"):
        from_dynamics.forgetting(np.ones((1, 1, 3)))
    with pytest.raises(ValueError, match="at least 3 epochs, got 2"):
        from_dynamics.tdds(np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="at least one"):
        from_dynamics.aum([], [])
    with pytest.raises(ValueError):  # one recording has fewer seeds
        from_dynamics.aum(np.ones((2, 4, 3)), np.ones((1, 4, 3)))


def test_every_score_says_what_it_is():
    for score in DYNAMICS.values():
        assert score.definition and score.paper and score.of in ("training", "epoch", "snapshot")
        assert score.compute.__doc__
    assert "2303.14753" in AT_INITIALISATION
