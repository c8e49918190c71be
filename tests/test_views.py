"""Views are data: families, plans, schedules, drawing, and what a student is shown."""

import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from toolkit.core.errors import FailureError, UsageError
from toolkit.training.showing import Showing, row_order
from toolkit.training.targets import MATCHES, Targets
from toolkit.views import schedule
from toolkit.views.families import family_named
from toolkit.views.plan import Plan
from toolkit.views.render import Renderer, normalise
from toolkit.views.schedule import geometry_of_slots, nearest_slots, slots_shown

PAD_CROPS = ("pad-crop", "pad-crop-flip")
GEOMETRIES = list(itertools.product(PAD_CROPS, (0, 1, 2, 4)))
ROWS = np.array([0, 1, 7, 8191, 8192, 59_999, 1_281_166])

# what version 1 of the renderer showed of rows 0, 1 and 59,999; of row 49,999; of row 5; and of ROWS in epoch 0
GOLDEN_FLIPS = [
    [0, 29, 8, 37, 18, 34, 6, 35],
    [0, 31, 16, 36, 5, 38, 11, 25],
    [0, 46, 23, 38, 1, 48, 10, 45],
]
GOLDEN_SEED_7 = [[0, 116, 75, 81, 45, 153, 57, 100]]
GOLDEN_NO_FLIPS = [[0, 8, 7, 1, 5, 4, 6, 3, 2]]
GOLDEN_SLOTS = [47, 0, 40, 14, 39, 29, 10]


def plan_of(family="pad-crop-flip", padding=2, seed=0, height=28, width=28):
    return Plan(family, height, width, padding, seed)


# families


@pytest.mark.parametrize(("name", "padding"), GEOMETRIES)
def test_decode_names_every_shift_and_mirroring_exactly_once(name, padding):
    family = family_named(name, padding)
    decoded = zip(*(values.tolist() for values in family.decode(np.arange(family.size))), strict=True)
    shifts = range(-padding, padding + 1)
    expected = itertools.product(shifts, shifts, (False, True) if name.endswith("flip") else (False,))
    assert sorted(decoded) == sorted(expected)


@pytest.mark.parametrize(("name", "padding"), GEOMETRIES)
def test_view_0_is_the_image_itself(name, padding):
    assert family_named(name, padding).decode(np.array(0)) == (0, 0, False)


def test_decode_keeps_the_shape_and_takes_the_stored_int16():
    family = family_named("pad-crop-flip", 4)
    views = np.arange(162, dtype=np.int16).reshape(2, 81)
    for stored, wide in zip(family.decode(views), family.decode(views.astype(np.int64)), strict=True):
        assert stored.shape == (2, 81)
        assert np.array_equal(stored, wide)


def test_unknown_family_suggests_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean pad-crop-flip"):
        plan_of("pad-crop-flips")


def test_a_negative_padding_is_refused():
    with pytest.raises(UsageError, match="padding"):
        plan_of(padding=-1)


def test_a_family_too_large_for_int16_is_refused():
    assert plan_of("pad-crop-flip", padding=63).size == 32_258
    with pytest.raises(UsageError, match="padding"):
        plan_of("pad-crop-flip", padding=64)


# plans


def test_plans_never_change():
    """The caches people have made hold these views: a plan that fails here needs a new renderer or family name."""
    flips = plan_of("pad-crop-flip", padding=2, seed=0).views(np.array([0, 1, 59_999]), 8)
    assert flips.tolist() == GOLDEN_FLIPS
    other_seed = plan_of("pad-crop-flip", padding=4, seed=7).views(np.array([49_999]), 8)
    assert other_seed.tolist() == GOLDEN_SEED_7
    no_flips = plan_of("pad-crop", padding=1, seed=0).views(np.array([5]), 9)
    assert no_flips.tolist() == GOLDEN_NO_FLIPS


@pytest.mark.parametrize(("name", "padding"), GEOMETRIES)
def test_slots_never_repeat_a_view(name, padding):
    plan = plan_of(name, padding)
    views_nk = plan.views(ROWS, plan.size)
    assert np.array_equal(np.sort(views_nk, axis=1), np.tile(np.arange(plan.size), (len(ROWS), 1)))


@pytest.mark.parametrize(("name", "padding"), GEOMETRIES)
def test_slot_0_is_the_image_itself(name, padding):
    plan = plan_of(name, padding)
    assert not plan.views(np.arange(500), plan.size)[:, 0].any()


def test_mirrors_alternate():
    plan = plan_of("pad-crop-flip", padding=1)
    mirrored_nk = np.stack([decoded(plan, views_k)[:, 2] for views_k in plan.views(ROWS, plan.size)])
    assert np.array_equal(mirrored_nk, np.tile(np.arange(plan.size) % 2 == 1, (len(ROWS), 1)))


@pytest.mark.parametrize("slots", [1, 2, 3, 9, 18])
def test_fewer_slots_are_the_first_of_more(slots):
    plan = plan_of(padding=1)
    assert np.array_equal(plan.views(ROWS, slots), plan.views(ROWS, 18)[:, :slots])


def test_a_rows_views_depend_on_no_other_row():
    plan = plan_of("pad-crop", padding=1)
    every_nk = plan.views(np.arange(8200), 9)  # more rows than are drawn at a time
    some = np.array([8199, 3, 8192, 3, 8191])
    assert np.array_equal(plan.views(some, 9), every_nk[some])


def test_every_view_is_equally_likely_in_every_later_slot():
    plan, rows = plan_of(padding=1), 18_000
    views_nk = plan.views(np.arange(rows), 4)
    for slot, first, share in ((1, 9, 1 / 9), (2, 1, 1 / 8), (3, 9, 1 / 9)):
        counts = np.bincount(views_nk[:, slot], minlength=18)[first : 9 if slot == 2 else 18]
        sigma = np.sqrt(rows * share * (1 - share))
        assert len(counts) == round(1 / share)
        assert np.abs(counts - rows * share).max() < 4.5 * sigma


def test_another_seed_is_another_plan():
    assert not np.array_equal(plan_of(seed=0).views(ROWS, 9), plan_of(seed=1).views(ROWS, 9))
    assert plan_of(seed=0).fingerprint != plan_of(seed=1).fingerprint


@pytest.mark.parametrize("slots", [-1, 0, 51])
def test_slots_outside_the_family_are_refused(slots):
    with pytest.raises(UsageError, match="1 to 50"):
        plan_of(padding=2).views(ROWS, slots)


def test_a_plan_survives_its_record():
    plan = plan_of(padding=3, seed=5)
    again = Plan.from_record(plan.to_record(), "cache.h5")
    assert again == plan
    assert again.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    "change", [{"renderer": "pad-crop/2"}, {"padding": "two"}, {"sharpness": 1}], ids=["renderer", "type", "field"]
)
def test_a_record_this_version_cannot_draw_is_refused(change):
    with pytest.raises(FailureError):
        Plan.from_record(plan_of().to_record() | change, "cache.h5")


# schedules


@pytest.mark.parametrize("slots", [1, 2, 7, 50])
@pytest.mark.parametrize("first_epoch", [0, 3, 1000])
def test_any_run_of_slots_epochs_shows_every_slot_once(slots, first_epoch):
    shown_en = np.stack([slots_shown(ROWS, first_epoch + e, slots, seed=0) for e in range(slots)])
    assert np.array_equal(np.sort(shown_en, axis=0), np.tile(np.arange(slots)[:, None], (1, len(ROWS))))


def test_a_rows_slot_depends_on_no_other_row():
    every_n = slots_shown(np.arange(10_000), 4, 16, seed=3)
    some = np.array([9999, 0, 42, 0])
    assert np.array_equal(slots_shown(some, 4, 16, seed=3), every_n[some])


def test_schedules_never_change():
    assert slots_shown(ROWS, 0, 50, seed=0).tolist() == GOLDEN_SLOTS
    assert slots_shown(ROWS, 1, 50, seed=0).tolist() == [(slot + 1) % 50 for slot in GOLDEN_SLOTS]


def test_rows_start_evenly_over_the_slots():
    counts = np.bincount(slots_shown(np.arange(16_000), 0, 16, seed=1), minlength=16)
    assert np.abs(counts - 1000).max() < 4.5 * np.sqrt(1000)


def decoded(plan, views_n):
    """(dy, dx, mirrored) of pad-crop views: (n, 3)."""
    rows_n = np.zeros(len(views_n), dtype=np.int64)
    return plan.geometry(rows_n, np.asarray(views_n), np.zeros((len(views_n), 2), dtype=np.int64))


def nearest_of(plan, rows_n, views_n, cached_nk):
    sizes_n2 = np.tile((plan.height, plan.width), (len(rows_n), 1))
    return nearest_slots(plan.geometry(rows_n, views_n, sizes_n2), geometry_of_slots(plan, rows_n, cached_nk, sizes_n2))


def nearest_by_brute_force(plan, views_k, view):
    dy, dx, mirrored = decoded(plan, [view])[0].tolist()
    cached = [tuple(place) for place in decoded(plan, views_k).tolist()]
    rivals = [k for k, c in enumerate(cached) if c[2] == mirrored] or range(len(cached))
    return min(rivals, key=lambda k: ((cached[k][0] - dy) ** 2 + (cached[k][1] - dx) ** 2, k))


@pytest.mark.parametrize("name", PAD_CROPS)
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_nearest_slot_is_the_one_brute_force_finds(name, slots):
    plan = plan_of(name, padding=2)
    views_nk = plan.views(ROWS, slots)
    for view in range(plan.size):
        expected = [nearest_by_brute_force(plan, views_k, view) for views_k in views_nk]
        assert nearest_of(plan, ROWS, np.full(len(ROWS), view), views_nk).tolist() == expected


def test_nearest_slots_of_many_rows_are_those_of_each_alone(monkeypatch):
    monkeypatch.setattr(schedule, "_DISTANCES_AT_A_TIME", 1000)
    plan, rows_n = plan_of(padding=4), np.arange(160)
    cached_nk, views_n = plan.views(rows_n, 20), plan.views(rows_n, 33)[:, 32]
    alone = [nearest_of(plan, rows_n[[n]], views_n[[n]], cached_nk[[n]])[0] for n in range(160)]
    assert nearest_of(plan, rows_n, views_n, cached_nk).tolist() == alone


def test_a_cached_view_is_its_own_nearest():
    plan = plan_of(padding=2)
    views_nk = plan.views(ROWS, 12)
    for slot in range(12):
        assert (nearest_of(plan, ROWS, views_nk[:, slot], views_nk) == slot).all()


# drawing


def random_images(rows, height, width):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(1, 256, (rows, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("height", "width", "padding"), [(7, 5, 2), (4, 9, 1), (3, 3, 4), (6, 6, 0)])
def test_every_view_is_torchvisions_pad_crop_and_mirror(height, width, padding):
    plan = plan_of(padding=padding, height=height, width=width)
    images_nhwc = random_images(3, height, width)
    rows_b = torch.arange(plan.size) % 3
    views_b3 = torch.from_numpy(decoded(plan, np.arange(plan.size)))
    dy_b, dx_b, mirrored_b = views_b3.T
    drawn_bhwc = Renderer(images_nhwc, plan).draw(rows_b, views_b3)
    for view in range(plan.size):
        padded = TF.pad(images_nhwc[rows_b[view]].permute(2, 0, 1), [padding])
        expected = TF.crop(padded, padding + int(dy_b[view]), padding + int(dx_b[view]), height, width)
        expected = TF.hflip(expected) if mirrored_b[view] else expected
        assert torch.equal(drawn_bhwc[view].permute(2, 0, 1), expected)


def test_drawing_leaves_the_images_as_they_were():
    images_nhwc = random_images(2, 5, 5)
    before = images_nhwc.clone()
    drawn = Renderer(images_nhwc, plan_of("pad-crop", 0, height=5, width=5)).draw(
        torch.tensor([1]), torch.tensor([[0, 0, 0]])
    )
    drawn.zero_()
    assert torch.equal(images_nhwc, before)


def test_images_of_another_size_than_the_plans_are_refused():
    with pytest.raises(ValueError, match="28 × 28"):
        Renderer(random_images(2, 28, 27), plan_of())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalise_is_torchvisions(dtype):
    images_bhwc = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16)[..., None].expand(-1, -1, -1, 3)
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    ours = normalise(images_bhwc, torch.tensor(mean, dtype=dtype), torch.tensor(std, dtype=dtype))
    theirs = TF.normalize(images_bhwc.permute(0, 3, 1, 2).to(dtype) / 255, mean, std)
    assert ours.dtype == dtype
    assert ours.shape == (2, 3, 8, 16)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs)


# what a student is shown


def targets_of(slots, match):
    rng = np.random.default_rng(1)
    return Targets.of_logits(rng.normal(size=(slots, len(ROWS), 10)).astype(np.float16), match)


def test_the_order_of_an_epoch_is_a_permutation_of_its_own():
    orders = [row_order(100, epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert np.array_equal(orders[0], row_order(100, 0, 0))


@pytest.mark.parametrize("slots", [1, 3, 50])
def test_exact_shows_the_very_view_whose_target_it_gives(slots):
    plan = plan_of()
    showing = Showing(ROWS, plan, 0, targets_of(slots, "exact"))
    for epoch in range(slots + 1):
        view_n, target_n = showing.views(epoch)
        assert np.array_equal(view_n, plan.views(ROWS, slots)[np.arange(len(ROWS)), target_n])


@pytest.mark.parametrize("match", [None, "nearest", "mean"])
def test_other_matches_show_the_whole_family(match):
    plan = plan_of(padding=1)
    showing = Showing(ROWS, plan, 0, targets_of(4, match) if match else None)
    shown_en = np.stack([showing.views(epoch)[0] for epoch in range(plan.size)])
    assert np.array_equal(np.sort(shown_en, axis=0), np.tile(np.arange(plan.size)[:, None], (1, len(ROWS))))


def test_nearest_gives_the_target_of_the_nearest_cached_view():
    plan = plan_of()
    showing = Showing(ROWS, plan, 0, targets_of(6, "nearest"))
    cached_nk = plan.views(ROWS, 6)
    for epoch in range(5):
        view_n, target_n = showing.views(epoch)
        expected = [nearest_by_brute_force(plan, cached_nk[n], view_n[n]) for n in range(len(ROWS))]
        assert target_n.tolist() == expected


def test_mean_gives_every_view_the_mean_of_the_cached_logits():
    targets = targets_of(5, "mean")
    expected_nc = targets.arrays["logits"].astype(np.float64).mean(axis=0)
    view_n, target_n = Showing(ROWS, plan_of(), 0, targets).views(epoch=2)
    table = targets.table(torch.device("cpu"), torch.float32)
    given_nc = table.gather(torch.from_numpy(target_n * len(ROWS) + np.arange(len(ROWS))))
    assert given_nc.dtype == torch.float32
    np.testing.assert_allclose(given_nc, expected_nc, rtol=1e-5, atol=1e-6)
    assert len(view_n) == len(target_n) == len(ROWS)


@pytest.mark.parametrize("match", MATCHES)
def test_what_a_row_shows_does_not_depend_on_the_subset(match):
    targets = targets_of(6, match)
    some = np.array([4, 1])
    part = Targets.of_logits(targets.arrays["logits"][:, some], match)
    for epoch in range(3):
        whole = Showing(ROWS, plan_of(), 9, targets).views(epoch)
        subset = Showing(ROWS[some], plan_of(), 9, part).views(epoch)
        assert all(np.array_equal(w[some], s) for w, s in zip(whole, subset, strict=True))


def test_unknown_match_is_refused():
    with pytest.raises(UsageError, match="did you mean nearest"):
        targets_of(2, "nearst")
