"""Encodings of logits: what they keep, how nearly, and that a batch gets what decoding everything would give it."""

import math

import h5py
import numpy as np
import pytest
import scipy.special
import torch

from toolkit.core.errors import FailureError, UsageError
from toolkit.distill.top_k import tail_log_sum_exp, tail_weights
from toolkit.formats.encodings import TAIL_TEMPERATURES, Encoding, FullLogits, TopLogits
from toolkit.training.targets import Targets, TopK

NAMES = ("float16", "float32", "float64", "int8", "topk:1", "topk:3", "topk:9")
CPU = torch.device("cpu")


def logits(rows=40, classes=10, scale=5.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, classes)).astype(np.float32)


def encoded(name, logits_nc):
    encoding = Encoding.parse(name, logits_nc.shape[1])
    return encoding, encoding.encode(logits_nc)


# names


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_what_it_names_are_one(name):
    assert Encoding.parse(name, 10).name == name


@pytest.mark.parametrize("name", ["", "float", "bfloat16", "int4", "topk", "topk:", "topk:-1", "topk:2.5", "topk:all"])
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(UsageError, match=r"known are float16, float32, int8 and topk:K, K from 1 to 9$"):
        Encoding.parse(name, 10)


@pytest.mark.parametrize("kept", [0, 10, 11])
def test_a_k_that_leaves_no_class_out_is_refused(kept):
    with pytest.raises(UsageError, match="keep from 1 to 9"):
        Encoding.parse(f"topk:{kept}", 10)


def test_top_k_of_a_single_class_is_refused():
    with pytest.raises(UsageError, match="a single class"):
        Encoding.parse("topk:1", 1)
    with pytest.raises(UsageError, match=r"int8$"):
        Encoding.parse("topk", 1)


def test_an_encoding_that_cannot_be_is_refused_however_it_is_made():
    with pytest.raises(UsageError, match="int64"):
        FullLogits(10, "int64")
    with pytest.raises(UsageError, match="at least 1 class"):
        FullLogits(0, "float16")
    with pytest.raises(UsageError, match="keep from 1 to 9"):
        TopLogits(10, 10)


# what is stored


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, 1, 40])
def test_what_is_stored_is_what_was_announced(name, rows):
    encoding, arrays = encoded(name, logits(rows))
    assert {key: (array.shape, array.dtype) for key, array in arrays.items()} == encoding.arrays(rows)
    assert sum(array.nbytes for array in arrays.values()) == rows * encoding.bytes_per_view


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("float16", 10, 20),
        ("float16", 100, 200),
        ("float32", 1000, 4000),
        ("int8", 1000, 1008),
        ("topk:64", 1000, 64 * 4 + 8),
        ("topk:64", 65_536, 64 * 4 + 8),
        ("topk:64", 65_537, 64 * 6 + 8),
    ],
)
def test_bytes_per_view(name, classes, expected):
    assert Encoding.parse(name, classes).bytes_per_view == expected


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_full_logits_are_rounded_to_their_type_and_no_more(dtype):
    logits_nc = logits()
    encoding, arrays = encoded(dtype, logits_nc)
    assert np.array_equal(arrays["logits"], logits_nc.astype(dtype))
    assert np.array_equal(encoding.dense(arrays), logits_nc.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_int8_is_wrong_by_half_a_step_at_most(scale, shift):
    logits_nc = logits(scale=scale) + np.float32(shift)
    encoding, arrays = encoded("int8", logits_nc)
    step_n1 = np.ptp(logits_nc, axis=1, keepdims=True) / 255
    rounding = 4 * np.finfo(np.float32).eps * np.abs(logits_nc).max()
    assert (np.abs(encoding.dense(arrays) - logits_nc) <= step_n1 / 2 + rounding).all()


def test_int8_uses_all_its_levels_and_keeps_a_row_of_equal_logits():
    logits_nc = logits()
    logits_nc[3] = 7.25
    encoding, arrays = encoded("int8", logits_nc)
    levels_nc = np.delete(arrays["int8/levels"], 3, axis=0)
    assert (levels_nc.min(axis=1) == -128).all()
    assert (levels_nc.max(axis=1) == 127).all()
    assert (encoding.dense(arrays)[3] == np.float32(7.25)).all()


def test_top_k_keeps_the_largest_descending_and_the_rest_as_log_sum_exp():
    logits_nc = logits()
    _, arrays = encoded("topk:3", logits_nc)
    sorted_nc = -np.sort(-logits_nc, axis=1)
    assert np.array_equal(arrays["topk/values"], sorted_nc[:, :3].astype(np.float16))
    assert np.array_equal(np.take_along_axis(logits_nc, arrays["topk/indices"].astype(int), axis=1), sorted_nc[:, :3])
    for column, tau in enumerate(TAIL_TEMPERATURES):
        expected_n = scipy.special.logsumexp(sorted_nc[:, 3:].astype(np.float64) / tau, axis=1)
        assert np.array_equal(arrays["topk/tail"][:, column], expected_n.astype(np.float16))


def test_equal_logits_are_kept_by_lower_class():
    logits_nc = np.array([[1, 5, 5, 0, 5], [2, 2, 2, 2, 2], [-0.0, 0.0, -1, 0.0, -0.0]], dtype=np.float32)
    _, arrays = encoded("topk:2", logits_nc)
    assert arrays["topk/indices"].tolist() == [[1, 2], [0, 1], [0, 1]]


@pytest.mark.parametrize("name", NAMES)
def test_top_class_is_the_largest_logit_and_the_lowest_class_among_equals(name):
    logits_nc = logits()
    logits_nc[:, 4] += 40
    logits_nc[7] = [1, 3, 3, 0, 3, 0, 0, 0, 0, 0]
    encoding, arrays = encoded(name, logits_nc)
    found_n = encoding.top_class(arrays)
    assert found_n.dtype == np.int64
    assert np.array_equal(found_n, logits_nc.argmax(axis=1))


def test_dense_top_k_spreads_the_rest_evenly_and_keeps_its_mass():
    logits_nc = logits()
    encoding, arrays = encoded("topk:3", logits_nc)
    dense_nc, indices_nk = encoding.dense(arrays), arrays["topk/indices"].astype(int)
    assert dense_nc.dtype == np.float32
    assert np.array_equal(np.take_along_axis(dense_nc, indices_nk, axis=1), arrays["topk/values"].astype(np.float32))
    np.put_along_axis(dense_nc, indices_nk, -np.inf, axis=1)
    assert all(len(np.unique(row[np.isfinite(row)])) == 1 for row in dense_nc)
    mass_n = scipy.special.logsumexp(dense_nc, axis=1)
    np.testing.assert_allclose(mass_n, arrays["topk/tail"][:, 0], atol=1e-5)


@pytest.mark.parametrize(("classes", "dtype"), [(65_536, np.uint16), (65_537, np.uint32), (70_000, np.uint32)])
def test_classes_past_65536_are_kept_whole(classes, dtype):
    logits_nc = np.zeros((2, classes), dtype=np.float32)
    logits_nc[0, classes - 1], logits_nc[1, 40_000] = 9, 8
    encoding, arrays = encoded("topk:1", logits_nc)
    assert arrays["topk/indices"].dtype == dtype
    assert encoding.top_class(arrays).tolist() == [classes - 1, 40_000]
    targets = Targets(encoding, {name: array[None] for name, array in arrays.items()}, "exact")
    given = targets.table(CPU, torch.float32).gather(torch.tensor([1, 0]))
    assert given.indices_bk.tolist() == [[40_000], [classes - 1]]


# what does not fit


@pytest.mark.parametrize("name", ["float16", "topk:3"])
@pytest.mark.parametrize("value", [65_505.0, 1e6, math.nan, math.inf])
def test_logits_beyond_float16_are_refused(name, value):
    logits_nc = logits()
    logits_nc[5, 2] = value
    with pytest.raises(FailureError, match=r"beyond ±65,504 do not fit float16. Use --encoding float32"):
        encoded(name, logits_nc)


def test_small_logits_that_top_k_does_not_store_may_be_out_of_range():
    logits_nc = logits()
    logits_nc[:, 0] = -1e6
    _, arrays = encoded("topk:3", logits_nc)
    assert all(np.isfinite(array).all() for array in arrays.values())
    logits_nc[:] = -1e6
    logits_nc[:, 0] = 0
    with pytest.raises(FailureError, match="do not fit float16"):  # now what is left out is itself out of range
        encoded("topk:1", logits_nc)


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_wider_encodings_take_what_float16_does_not(name):
    logits_nc = 1e6 * logits()
    encoding, arrays = encoded(name, logits_nc)
    assert np.abs(encoding.dense(arrays) - logits_nc).max() <= np.ptp(logits_nc) / 255
    with pytest.raises(FailureError, match="Name another --teacher"):
        encoded(name, np.full((1, 3), 1e300))


# the tail between the temperatures it is stored at


TEMPERATURES = (1, 1.5, 2, 3, 4, 6, 8, 12, 20)


def tail_errors(logits_nc, kept, temperature):
    """How wrong log Σ exp(z/τ) of the rest is, and the rest's share of all probability: the largest of each."""
    logits_nc = np.asarray(logits_nc, dtype=np.float64)
    _, arrays = encoded(f"topk:{kept}", logits_nc)
    left_out = logits_nc.shape[1] - kept
    found_n = tail_log_sum_exp(torch.from_numpy(arrays["topk/tail"]).float(), left_out, temperature).numpy()
    sorted_nc = -np.sort(-logits_nc, axis=1) / temperature
    exact_n = scipy.special.logsumexp(sorted_nc[:, kept:], axis=1)
    top_n = scipy.special.logsumexp(sorted_nc[:, :kept], axis=1)
    shares = [scipy.special.expit(tail_n - top_n) for tail_n in (found_n, exact_n)]
    return np.abs(found_n - exact_n).max(), np.abs(shares[0] - shares[1]).max()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("classes", "kept", "scale", "log_bound", "share_bound"),
    [(100, 8, 1, 0.01, 0.002), (100, 32, 3, 0.02, 0.004), (1000, 8, 3, 0.03, 0.006), (1000, 64, 6, 0.06, 0.006)],
)
def test_the_tail_of_random_logits_is_near_at_every_temperature(
    classes, kept, scale, log_bound, share_bound, temperature
):
    log_error, share_error = tail_errors(logits(300, classes, scale), kept, temperature)
    assert log_error < log_bound
    assert share_error < share_bound


@pytest.mark.parametrize("kept", [2, 5])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_tail_of_a_real_teachers_logits_is_near_at_every_temperature(digits, kept, temperature):
    with h5py.File(digits / "teachers" / "digits-resnet8" / "cache.h5") as file:
        logits_nc = np.concatenate([file[f"slots/{slot}/logits"][()] for slot in (0, 1)])
    log_error, share_error = tail_errors(logits_nc, kept, temperature)
    assert log_error < 0.06
    assert share_error < 0.006


@pytest.mark.parametrize("temperature", [1, 1.5, 2, 7, 50])
def test_the_tail_of_one_class_is_its_logit(temperature):
    logits_nc = logits()
    _, arrays = encoded("topk:9", logits_nc)
    found_n = tail_log_sum_exp(torch.from_numpy(arrays["topk/tail"]).double(), 1, temperature)
    smallest_n = logits_nc.min(axis=1) / temperature
    rounding = 4 * 2**-11 * np.abs(logits_nc).max()
    np.testing.assert_allclose(found_n, smallest_n, atol=rounding)
    assert np.allclose(np.dot(tail_weights(temperature), [0, 1, 1 / 2, 1 / 4, 1 / 8]), 1 / temperature)


def test_stored_temperatures_are_given_back_and_rounding_is_hardly_enlarged():
    for column, temperature in enumerate(TAIL_TEMPERATURES):
        np.testing.assert_allclose(tail_weights(temperature), np.eye(5)[column + 1], atol=1e-15)
    assert max(np.abs(tail_weights(tau)).sum() for tau in np.linspace(1, 100, 1000)) < 3.6


# targets: what a batch gets


def targets_of(name, match="exact", slots=3, rows=11, classes=10):
    encoding = Encoding.parse(name, classes)
    per_slot = [encoding.encode(logits(rows, classes, seed=slot)) for slot in range(slots)]
    return Targets(encoding, {key: np.stack([arrays[key] for arrays in per_slot]) for key in per_slot[0]}, match)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_what_decoding_everything_and_indexing_gives(name, dtype):
    targets = targets_of(name)
    slot_b, row_b = np.array([2, 0, 1, 2, 2]), np.array([10, 0, 5, 5, 10])
    given = targets.table(CPU, dtype).gather(torch.from_numpy(slot_b * targets.rows + row_b))
    if isinstance(given, TopK):
        expected = [targets.arrays[f"topk/{key}"][slot_b, row_b] for key in ("values", "indices", "tail")]
        assert [tensor.dtype for tensor in given] == [dtype, torch.int64, dtype]
        assert all(np.array_equal(tensor, array) for tensor, array in zip(given, expected, strict=True))
        return
    if name == "float64":
        expected = targets.arrays["logits"][slot_b, row_b].astype(str(dtype).removeprefix("torch."))
    else:
        expected = np.stack([targets.dense(slot)[row] for slot, row in zip(slot_b, row_b, strict=True)])
    assert given.dtype == dtype
    assert np.array_equal(given, expected)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "int8"])
def test_the_mean_is_over_the_decoded_slots(name):
    targets = targets_of(name, "mean")
    expected_nc = np.mean([targets.dense(slot) for slot in range(3)], axis=0, dtype=np.float32)
    given_bc = targets.table(CPU, torch.float32).gather(torch.tensor([10, 0]))
    assert np.array_equal(given_bc, expected_nc[[10, 0]])


def test_the_mean_of_top_k_is_refused():
    with pytest.raises(UsageError, match=r"topk:3 keeps too few .* --match nearest or exact, or .* --encoding int8"):
        targets_of("topk:3", "mean")


def test_targets_know_how_many_slots_and_rows_they_hold():
    for name in NAMES:
        assert (targets_of(name).slots, targets_of(name).rows) == (3, 11)


def test_arrays_that_are_not_the_encodings_are_a_bug():
    with pytest.raises(ValueError, match=r"logits: \(3, 11, 10\) float16, not \(3, 11, 10\) float32"):
        Targets(Encoding.parse("float32", 10), targets_of("float16").arrays, "exact")
