"""The core: whole files, locks, hashing, recipes, settings and progress."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from toolkit.core import progress
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import need_space, read_json, whole_file, whole_folder, write_json
from toolkit.core.hashing import fingerprint, mix, rng_for
from toolkit.core.locks import only_writer
from toolkit.core.recipes import RECIPES, SCHEDULES, Recipe, lr_at, resolve_recipe
from toolkit.distill.losses import LOSSES
from toolkit.distill.settings import DistillSettings


class Interrupted(Exception):
    pass


# whole files and folders


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "cache.h5"
    with whole_file(path) as temporary:
        temporary.write_bytes(b"all of it")
        assert temporary.parent == path.parent  # a rename across file systems would be a copy
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert names_in(tmp_path) == ["new", "new/cache.h5"]


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, FailureError, OSError])
def test_a_file_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path, error):
    path = tmp_path / "cache.h5"
    path.write_text("old")
    with pytest.raises(FailureError if error is OSError else error), whole_file(path) as temporary:
        temporary.write_text("half")
        raise error("stopped")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["cache.h5"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "subsets" / "tenth"
    for name in ("first", "second"):
        with whole_folder(path) as temporary:
            (temporary / "targets").mkdir()
            (temporary / "targets" / name).write_text(name)
    assert names_in(tmp_path / "subsets") == ["tenth", "tenth/targets", "tenth/targets/second"]


@pytest.mark.parametrize("error", [Interrupted, KeyboardInterrupt, FailureError, OSError])
def test_a_folder_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path, error):
    path = tmp_path / "tenth"
    path.mkdir()
    (path / "subset.json").write_text("old")
    with pytest.raises(FailureError if error is OSError else error), whole_folder(path) as temporary:
        (temporary / "subset.json").write_text("half")
        raise error("stopped")
    assert names_in(tmp_path) == ["tenth", "tenth/subset.json"]
    assert (path / "subset.json").read_text() == "old"


FILL_THE_DISK = """
import resource, sys
from pathlib import Path
from toolkit.core.errors import FailureError
from toolkit.core import files

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
path = Path(sys.argv[2])
try:
    with getattr(files, sys.argv[1])(path) as temporary:
        (temporary if sys.argv[1] == "whole_file" else temporary / "part").write_bytes(bytes(10_000))
except FailureError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_a_write_the_system_refuses_is_one_clear_error_and_leaves_nothing(tmp_path, kind):
    path = tmp_path / "cache.h5"
    done = subprocess.run([sys.executable, "-c", FILL_THE_DISK, kind, str(path)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith(f"{path}: could not be written (File too large).")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_a_path_through_a_file_is_one_clear_error(tmp_path, whole):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FailureError, match="could not be written"), whole(tmp_path / "file" / "x" / "cache.h5"):
        pass
    assert names_in(tmp_path) == ["file"]


def test_a_record_survives_json(tmp_path):
    record = {"rows": 6000, "name": "Größe ½", "nested": {"list": [1, 2.5, None, True]}}
    for compact in (False, True):
        write_json(tmp_path / "subset.json", record, compact_lists=compact)
        assert read_json(tmp_path / "subset.json", "kdtool build-subset") == record


@pytest.mark.parametrize("content", [None, b"{", b"[1, 2]", b"\xff\xfe\x00"], ids=["missing", "cut", "list", "binary"])
def test_a_record_that_is_none_says_which_command_makes_it(tmp_path, content):
    path = tmp_path / "subset.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FailureError, match=r"subset\.json: .*Run: kdtool build-subset"):
        read_json(path, "kdtool build-subset")


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    need_space(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(FailureError, match="GiB free"):
        need_space(tmp_path / "not" / "yet" / "there", 10**18)
    assert names_in(tmp_path) == []


# locks

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from toolkit.core.locks import only_writer

with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_writes_and_a_killed_one_holds_nothing(tmp_path):
    artifact = tmp_path / "cache.h5"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_THE_LOCK, str(artifact)], stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            told = rf"cache\.h5: is being written by process {holder.pid} on "
            with pytest.raises(FailureError, match=told), only_writer(artifact):
                pass
        finally:
            holder.send_signal(signal.SIGKILL)
    with only_writer(artifact):
        pass


def test_a_refused_writer_leaves_the_holders_name_and_lock_in_place(tmp_path):
    with only_writer(tmp_path / "cache.h5"):
        for _ in range(2):
            with pytest.raises(FailureError, match=f"process {os.getpid()} on "), only_writer(tmp_path / "cache.h5"):
                pass


def test_locks_of_different_artifacts_are_independent(tmp_path):
    with only_writer(tmp_path / "a.h5"), only_writer(tmp_path / "b.h5"):
        pass


def test_a_lock_ends_with_its_block_even_by_an_error(tmp_path):
    with pytest.raises(Interrupted), only_writer(tmp_path / "cache.h5"):
        raise Interrupted
    with only_writer(tmp_path / "cache.h5"):
        pass


# hashing

MASK = 2**64 - 1


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def mix_by_hand(*counters):
    state = 0
    for counter in counters:
        state = splitmix64(state ^ (counter & MASK))
    return state


def test_mix_never_changes():
    """Every plan, schedule and order on people's disks comes from it."""
    assert int(mix(0)) == 0xE220A8397B1DCDAF  # the published first output of SplitMix64 seeded with 0
    assert int(mix(1, 2, 3)) == 0xD0734750FDE362B3


@pytest.mark.parametrize("counters", [(), (0,), (-1,), (2**63 - 1, -(2**63)), (2**64 - 1, 7), (1, 2), (2, 1), (5,) * 9])
def test_mix_is_splitmix64_over_the_counters(counters):
    assert int(mix(*counters)) == mix_by_hand(*counters)


def test_mix_broadcasts():
    rows_n, slots_k = np.array([0, 1, 59_999], dtype=np.int32), np.arange(4)
    mixed_nk = mix(3, rows_n[:, None], slots_k)
    assert mixed_nk.dtype == np.uint64
    assert mixed_nk.tolist() == [[mix_by_hand(3, row, slot) for slot in range(4)] for row in rows_n.tolist()]


def test_mix_does_not_collide_on_small_counters():
    grid = np.arange(100)
    assert len(np.unique(mix(grid[:, None, None], grid[:50, None], grid[:50]))) == 100 * 50 * 50


def test_generators_are_one_stream_for_each_purpose():
    drawn = [tuple(rng_for(*counters).integers(0, 2**60, 4)) for counters in ((1, 2), (1, 2), (2, 1), (1, 2, 0))]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_fingerprints_are_of_the_bytes_alone():
    expected = hashlib.sha256("α=1;rows".encode()).hexdigest()[:16]
    assert fingerprint("α=1;", b"rows") == expected
    assert fingerprint("α=1;rows".encode()) == expected
    assert fingerprint("α=1;", memoryview(np.frombuffer(b"rows", dtype=np.uint8))) == expected
    assert fingerprint("α=2;rows") != expected


# recipes


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 78])
def test_paper_cifar_divides_by_ten_at_epochs_150_180_and_210(steps_per_epoch):
    total_steps = 240 * steps_per_epoch
    for step in range(total_steps):
        epoch = step // steps_per_epoch
        expected = 0.05 if epoch < 150 else 0.005 if epoch < 180 else 0.0005 if epoch < 210 else 0.00005
        assert math.isclose(lr_at(RECIPES["paper-cifar"], step, total_steps), expected, rel_tol=1e-12)


def test_cosine_is_torchs():
    recipe, total_steps = RECIPES["paper-imagenet"], 200
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total_steps)
    for step in range(total_steps):
        assert math.isclose(lr_at(recipe, step, total_steps), scheduler.get_last_lr()[0], rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_cosine_runs_from_the_peak_to_almost_nothing():
    rates = [lr_at(RECIPES["paper-imagenet"], step, 1000) for step in range(1000)]
    assert rates[0] == 0.1
    assert math.isclose(rates[500], 0.05)
    assert 0 < rates[-1] < 1e-6
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize("total_steps", [20, 100, 101, 1407, 14_070])
def test_fast_warms_up_to_its_peak_and_falls_in_a_line_to_almost_nothing(total_steps):
    recipe = RECIPES["fast"]
    rates = np.array([lr_at(recipe, step, total_steps) for step in range(total_steps)])
    peak, slope = rates.argmax(), recipe.lr / (0.85 * total_steps)
    assert abs(peak - 0.15 * total_steps) <= 1
    assert recipe.lr - slope <= rates[peak] <= recipe.lr * (1 + 1e-12)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    np.testing.assert_allclose(np.diff(rates[peak + 1 :]), -slope, rtol=1e-6)
    assert 0 < rates[-1] <= slope * 1.001


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("total_steps", [1, 2, 3, 10, 999])
def test_every_rate_is_positive_and_at_most_the_peak(name, total_steps):
    rates = [lr_at(RECIPES[name], step, total_steps) for step in range(total_steps)]
    assert all(0 < rate <= RECIPES[name].lr * (1 + 1e-12) for rate in rates)


def test_every_schedule_belongs_to_a_recipe():
    assert {recipe.schedule for recipe in RECIPES.values()} == set(SCHEDULES)


@pytest.mark.parametrize(
    "bad",
    [
        *({"lr": lr} for lr in (0.0, -1.0, math.nan, math.inf)),
        {"epochs": 0},
        {"batch_size": 0},
        {"schedule": "x"},
    ],
    ids=str,
)
def test_a_recipe_refuses_bad_values(bad):
    with pytest.raises(UsageError, match=next(iter(bad)).replace("_", "-")):
        replace(RECIPES["fast"], **bad)


def test_what_the_user_says_replaces_the_preset_and_nothing_else():
    assert resolve_recipe("fast") == RECIPES["fast"]
    assert resolve_recipe("fast", epochs=5, lr=0.3) == replace(RECIPES["fast"], epochs=5, lr=0.3)
    assert resolve_recipe("paper-cifar", batch_size=16) == replace(RECIPES["paper-cifar"], batch_size=16)
    with pytest.raises(UsageError, match="--epochs"):
        resolve_recipe("fast", epochs=0)


def test_an_unknown_recipe_suggests_the_nearest():
    with pytest.raises(UsageError, match="did you mean paper-cifar"):
        resolve_recipe("paper-cifer")


def test_recipes_are_frozen():
    with pytest.raises(AttributeError):
        RECIPES["fast"].lr = 1.0
    assert isinstance(RECIPES["fast"], Recipe)


# a distillation's settings

GOOD = {"alpha": 0.5, "temperature": 4.0, "match": "exact", "iterations": None}
ALSO_GOOD = [
    {},
    {"match": "mean"},
    {"iterations": 1},
    *({"alpha": alpha} for alpha in (0, 1)),
    *({"alpha": word} for word in ("auto", "search")),
    *({"loss": loss} for loss in LOSSES),
    {"beta": 0.0, "loss": "dkd"},
    {"temperature": None, "loss": "mse"},
]


@pytest.mark.parametrize("good", ALSO_GOOD, ids=str)
def test_settings_take_good_values(good):
    settings = DistillSettings(**GOOD | good)
    assert vars(settings) == {"loss": "kd", "beta": None} | GOOD | good


@pytest.mark.parametrize(
    "bad",
    [
        *({"alpha": alpha} for alpha in (-0.01, 1.01, math.nan, math.inf)),
        *({"temperature": temperature} for temperature in (0, -1, math.nan, math.inf)),
        *({"alpha": word} for word in ("best", "0.5", "")),
        {"match": "exactly"},
        {"loss": "kl"},
        *({"beta": beta, "loss": "dkd"} for beta in (-0.1, math.nan, math.inf)),
        *({"beta": 2.0, "loss": loss} for loss in LOSSES if LOSSES[loss].beta is None),
        {"iterations": 0},
    ],
    ids=str,
)
def test_settings_refuse_bad_values(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        DistillSettings(**GOOD | bad)


# progress


def test_silence_is_silent(capsys):
    with progress.silent("pack", 10, "img") as tick:
        tick(10)
    assert capsys.readouterr() == ("", "")


def test_short_work_writes_no_line_to_a_log(capsys):
    with progress.on_stderr("pack", 10, "img") as tick:
        tick(10)
    assert capsys.readouterr() == ("", "")


def test_long_work_writes_lines_to_stderr_alone(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress.on_stderr("pack", 2000, "img") as tick:
        tick(1500)
        tick(500)
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("pack: 1,500 of 2,000 img, ")
    assert second.startswith("pack: 2,000 of 2,000 img, ")
    assert second.endswith(" 0 s left")


def test_written_json_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "run.json", {"a": 1})
    text = (tmp_path / "run.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"a": 1}


def test_the_papers_presets_are_the_papers():
    cifar, imagenet = RECIPES["paper-cifar"], RECIPES["paper-imagenet"]
    assert (cifar.epochs, cifar.batch_size, cifar.lr, cifar.momentum, cifar.weight_decay) == (240, 64, 0.05, 0.9, 5e-4)
    assert (imagenet.batch_size, imagenet.lr, imagenet.momentum, imagenet.weight_decay) == (128, 0.1, 0.9, 5e-4)
    assert imagenet.schedule == "cosine"
    assert not cifar.nesterov and not imagenet.nesterov
