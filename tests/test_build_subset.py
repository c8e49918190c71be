"""build-subset as a user runs it: every method, several at once, what stands in the bundle, and what is refused."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import kdtool, made
from tests.test_bad_input import edited, fails, flipped, held, refused, rewritten, unchanged
from toolkit import selection
from toolkit.formats.bundle import open_bundle
from toolkit.formats.cache import open_cache
from toolkit.formats.dataset import open_packed
from toolkit.formats.encodings import Encoding
from toolkit.formats.workspace import Workspace
from toolkit.pipeline import subset as pipeline
from toolkit.selection.methods import METHODS

ROWS = 1442
DIGITS = ("build-subset", "--dataset", "digits")
SEEING = [name for name, method in METHODS.items() if {"features", "logits"} & set(method.needs)]
SCORING = [name for name, method in METHODS.items() if "scores" in method.needs]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits packed, one view cached."""
    workspace = tmp_path_factory.mktemp("cached")
    made("cache-teacher", "-w", workspace, "--dataset", "digits", "--views", "1")
    return workspace


@pytest.fixture
def ours(cached: Path, tmp_path: Path) -> Path:
    """A copy to write in."""
    return Path(shutil.copytree(cached, tmp_path / "ours"))


def built(*words: Any) -> list[dict[str, Any]]:
    """The results of a build-subset that may make several."""
    result = kdtool(*DIGITS, *words, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """What decides a student: everything but the record's times and commands."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    record = json.loads(files.pop("subset.json"))
    kept = {key: value for key, value in record.items() if key not in ("command", "created", "select_s")}
    targets = [name for name in files if name.startswith("targets/")]
    for name in targets:  # they hold a time and a command too
        with open_cache(folder / name) as cache:
            files[name] = b"".join(cache.read(array).tobytes() for array in cache.dataset_names())
    return {**files, "subset.json": json.dumps(kept, sort_keys=True).encode()}


# law 7


@pytest.mark.parametrize("balance", ["--balance", "--no-balance"])
@pytest.mark.parametrize("method", list(METHODS))
def test_law_7_holds_for_every_method(ours: Path, method: str, balance: str):
    fractions = (0.0071, 0.05, 0.4)
    words = [word for fraction in fractions for word in ("--frac", fraction)]
    for fraction, result in zip(fractions, built("-w", ours, "--method", method, balance, *words), strict=True):
        bundle = open_bundle(Path(result["path"]))
        assert result["rows"] == len(set(bundle.rows_m)) == round(fraction * ROWS)
        assert np.array_equal(np.unique(bundle.images().labels_n), np.arange(10))
        assert result["select_s"] >= 0
        assert (bundle.weights_m is None) == (not METHODS[method].weighted)
        if bundle.weights_m is not None:
            assert bundle.weights_m.dtype == np.float32 and bundle.weights_m.mean() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["random", "stratified", "herding", "craig"])
def test_nested_fractions_lie_in_one_another_and_every_class_keeps_its_least(ours: Path, method: str):
    words = ("--method", method, "--nested", "--min-per-class", 6, "--frac", 0.05, "--frac", 0.1, "--frac", 0.3)
    bundles = [open_bundle(Path(result["path"])) for result in built("-w", ours, *words)]
    for smaller, larger in pairwise(bundles):
        assert set(smaller.rows_m) < set(larger.rows_m)
    assert min(bundles[0].record.class_counts.values()) >= 6
    assert bundles[0].record.nested and bundles[0].folder.name.endswith("-nested-min6-0.05-s0")


# several at once


def test_several_at_once_are_those_made_one_by_one(cached: Path, tmp_path: Path):
    at_once, alone = (Path(shutil.copytree(cached, tmp_path / name)) for name in ("at-once", "alone"))
    methods, fractions = ("random", "craig", "d2"), ("0.1", "0.3")
    words = [word for method in methods for word in ("--method", method)]
    results = built("-w", at_once, *words, "--frac", "0.1", "--frac", "0.3", "--frac", "0.1")
    pairs = [(method, fraction) for method in methods for fraction in fractions]
    assert [(result["method"], f"{result['fraction']:g}") for result in results] == pairs
    for (method, fraction), result in zip(pairs, results, strict=True):
        (single,) = built("-w", alone, "--method", method, "--frac", fraction)
        assert contents(Path(single["path"])) == contents(Path(result["path"]))


def test_data_and_cache_are_opened_once_for_several(ours: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    ensure = pipeline.ensure_packed
    monkeypatch.setattr(
        pipeline, "ensure_packed", lambda *words, **more: opened.append("data") or ensure(*words, **more)
    )
    known = pipeline.what_is_known
    monkeypatch.setattr(pipeline, "what_is_known", lambda *words: opened.append("known") or known(*words))
    built("-w", ours, "--method", "herding", "--method", "moderate", "--frac", "0.1", "--frac", "0.2")
    assert opened == ["data", "known"]


def test_what_the_methods_look_at_is_searched_once_for_what_is_no_number(ours: Path, monkeypatch: pytest.MonkeyPatch):
    read = []
    look = selection._first_not_finite
    monkeypatch.setattr(selection, "_first_not_finite", lambda array: read.append(array.shape) or look(array))
    methods = [word for method in ("herding", "d2", "cal", "hardest") for word in ("--method", method)]
    assert len(built("-w", ours, *methods, "--frac", "0.1", "--frac", "0.2")) == 8
    assert sorted(map(len, read)) == [1, 2, 2]  # scores, features and logits


def test_a_failure_in_the_second_keeps_the_first(ours: Path):
    built("-w", ours, "--frac", "0.2")
    edited(ours / "subsets" / "digits-random-0.2-s0" / "subset.json", fraction=0.3)
    result = kdtool(*DIGITS, "-w", ours, "--frac", "0.1", "--frac", "0.2", "--frac", "0.3", "--json")
    assert result.exit_code == 1 and "other settings" in result.stderr
    (told,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert open_bundle(Path(told["path"])).record.fraction == 0.1
    assert sorted(path.name for path in (ours / "subsets").glob("d*[0-9]")) == [
        "digits-random-0.1-s0",
        "digits-random-0.2-s0",
    ]


def test_from_python_one_or_several(ours: Path):
    one = pipeline.build_subset(ours, frac=0.1, dataset="digits", method="herding")
    several = pipeline.build_subsets(Workspace(ours), [0.1, 0.2], "digits", ["herding"])
    assert several[0]["path"] == one["path"]
    assert len(several) == 2


# what stands in the bundle


def test_the_record_says_what_was_looked_at(ours: Path):
    names = {
        "random": "digits-random-0.1-s0",
        "window": "digits-window-el2n-c0.7-0.1-s0",
        "stratified": "digits-stratified-el2n-b0.3-0.1-s0",
        "craig": "digits-craig-0.1-s0",
        "d2": "digits-d2-el2n-b0.3-0.1-s0",
    }
    words = [word for method in names for word in ("--method", method)]
    results = built("-w", ours, *words, "--frac", "0.1", "--center", "0.7", "--drop-hardest", "0.3")
    assert [result["name"] for result in results] == list(names.values())
    records = {result["method"]: open_bundle(Path(result["path"])).record for result in results}
    with open_cache(ours / "teachers" / "digits-resnet8" / "cache.h5") as cache:
        teacher = ("digits-resnet8", cache.record.teacher_fingerprint)
    for method, record in records.items():
        seen = teacher if method in SEEING else (None, None)
        assert (record.features_of, record.features_fingerprint) == seen
        assert record.scored_by == ("el2n of digits-resnet8" if method in SCORING else None)
        assert record.center == (0.7 if method == "window" else None)
        assert record.drop_hardest == (0.3 if method in ("stratified", "d2") else None)
        assert (record.weights_fingerprint is not None) == METHODS[method].weighted
        assert record.select_s is not None and "select_s" not in record.settings()


@pytest.mark.parametrize(
    "words",
    [
        ("--method", "window", "--center", "0.25", "--no-balance", "--nested", "--min-per-class", "3"),
        ("--method", "stratified", "--score", "margin", "--drop-hardest", "0.2", "--index-only"),
        ("--method", "grad-match", "--seed", "4"),
        ("--method", "d2", "--drop-hardest", "0.25"),
    ],
    ids=lambda words: words[1],
)
def test_the_recorded_command_makes_the_same_again(ours: Path, words: tuple[str, ...]):
    (result,) = built("-w", ours, "--frac", "0.15", *words)
    folder = Path(result["path"])
    before, command = contents(folder), open_bundle(folder).record.made_by
    assert kdtool(*command.split()[1:], "-w", ours).exit_code == 0
    assert contents(folder) == before


def test_imported_scores_are_of_no_teacher(ours: Path, tmp_path: Path):
    np.save(tmp_path / "mine.npy", np.arange(ROWS)[::-1] % 97)
    words = ("score", "-w", ours, "--dataset", "digits", "--import", tmp_path / "mine.npy", "--name", "mine")
    assert kdtool(*words).exit_code == 0
    (result,) = built("-w", ours, "--frac", "0.1", "--method", "hardest", "--score", "mine")
    record = open_bundle(Path(result["path"])).record
    assert record.scored_by is not None and record.scored_by.startswith("mine of ")
    assert "--score mine" in record.made_by and "--teacher" not in record.made_by
    assert kdtool(*record.made_by.split()[1:], "-w", ours).exit_code == 0


@pytest.mark.parametrize("method", ["random", "craig", "herding", "window"])
def test_the_same_again_changes_nothing(ours: Path, method: str):
    words = ("-w", ours, "--frac", "0.1", "--method", method)
    built(*words)
    with unchanged(ours):
        built(*words)


def counted_choices(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that choose from now on; `random`, without anything to look at, checks each fraction first."""
    chosen: list[str] = []
    choose = pipeline.SubsetRequest.choose

    def watched(asked: Any, method: str, *more: Any) -> Any:
        chosen.append(method)
        return choose(asked, method, *more)

    monkeypatch.setattr(pipeline.SubsetRequest, "choose", watched)
    return chosen


def test_what_is_there_is_not_chosen_again_nor_is_what_it_looked_at_read(ours: Path, monkeypatch: pytest.MonkeyPatch):
    words = [word for method in ("hardest", "herding", "craig", "d2") for word in ("--method", method)]
    first = built("-w", ours, "--frac", "0.1", *words)
    chosen = counted_choices(monkeypatch)
    monkeypatch.setattr("toolkit.pipeline.subset_request.checked", lambda *all: pytest.fail("it was read"))
    assert built("-w", ours, "--frac", "0.1", *words) == first  # with the seconds that choosing took
    assert chosen == ["random"]
    monkeypatch.undo()
    chosen = counted_choices(monkeypatch)
    built("-w", ours, "--frac", "0.1", "--method", "craig", "--force")
    assert chosen == ["random", "craig"]


def test_what_was_chosen_from_other_numbers_is_chosen_again(ours: Path, monkeypatch: pytest.MonkeyPatch):
    words = [word for method in ("random", "hardest", "herding", "craig") for word in ("--method", method)]
    built("-w", ours, "--frac", "0.1", *words)
    chosen = counted_choices(monkeypatch)
    made("cache-teacher", "-w", ours, "--dataset", "digits", "--views", "2")  # one more view changes none of it
    built("-w", ours, "--frac", "0.1", *words)
    assert chosen == ["random"]
    made("cache-teacher", "-w", ours, "--dataset", "digits", "--views", "2", "--encoding", "float32", "--force")
    kdtool(*DIGITS, "-w", ours, "--frac", "0.1", "--method", "herding", "--method", "craig")
    assert chosen[1:] == ["random", "craig"]  # other logits, the same features
    del chosen[:]
    edited(ours / "subsets" / "digits-hardest-el2n-0.1-s0" / "subset.json", scores_fingerprint="0" * 16)
    built("-w", ours, "--frac", "0.1", "--method", "hardest")
    assert chosen == ["random", "hardest"]


def test_other_settings_are_told_before_choosing(ours: Path, monkeypatch: pytest.MonkeyPatch):
    built("-w", ours, "--frac", "0.1", "--method", "craig", "--name", "mine")
    chosen = counted_choices(monkeypatch)
    words = (*DIGITS, "--frac", "0.1", "--method", "grad-match", "--name", "mine")
    refused(ours, words, 1, "method craig → grad-match", "another --name")
    assert chosen == ["random"]


# other teachers


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher `b` of the user's own, with the dynamics of its training and no cache."""
    workspace = tmp_path_factory.mktemp("taught")
    common = ("-w", workspace, "--dataset", "digits")
    made("train-teacher", *common, "--arch", "resnet8", "--width", "4", "--epochs", "2", "--name", "b")
    made("score", *common, "--teacher", "b", "--score", "forgetting")
    return workspace


@pytest.fixture
def own(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "own"))


def test_a_subset_by_dynamics_comes_before_the_cache_of_its_rows_alone(own: Path):
    words = ("-w", own, "--frac", "0.1", "--method", "hardest", "--score", "forgetting", "--teacher", "b")
    (result,) = built(*words)
    assert result["targets"] == [] and not (own / "teachers" / "b" / "cache.h5").exists()
    assert result["name"] == "digits-hardest-forgetting-by-b-0.1-s0"
    made("cache-teacher", "-w", own, "--teacher", "b", "--subset", result["name"], "--views", "1")
    again = built(*words)
    assert again == [{**result, "targets": ["b"]}]
    assert not (own / "teachers" / "b" / "cache.h5").exists()


@pytest.mark.parametrize("words", [("--method", "herding"), ("--method", "hardest", "--score", "el2n")])
def test_a_named_teachers_cache_is_demanded_by_what_lies_in_it(own: Path, words: tuple[str, ...]):
    said = ("b/cache.h5: not found", "Run: kdtool cache-teacher --dataset digits --teacher b")
    refused(own, (*DIGITS, "--frac", "0.1", "--teacher", "b", *words), 1, *said)


def test_two_teachers_give_two_subsets_of_names_of_their_own(own: Path):
    for teacher in ((), ("--teacher", "b")):
        made("cache-teacher", "-w", own, "--dataset", "digits", "--views", "1", *teacher)
    words = ("-w", own, "--frac", "0.1", "--method", "herding", "--method", "hardest")
    names = [result["name"] for result in [*built(*words, "--teacher", "b"), *built(*words)]]
    assert names == [
        "digits-herding-by-b-0.1-s0",
        "digits-hardest-el2n-by-b-0.1-s0",
        "digits-herding-0.1-s0",
        "digits-hardest-el2n-0.1-s0",
    ]
    (own / "teachers" / "b" / "teacher.pt").unlink()  # what it left behind is enough
    for name in names:
        before, command = contents(own / "subsets" / name), open_bundle(own / "subsets" / name).record.made_by
        assert kdtool(*command.split()[1:], "-w", own).exit_code == 0
        assert contents(own / "subsets" / name) == before
    assert [result["name"] for result in built("-w", own, "--frac", "0.1", "--teacher", "b")] == [
        "digits-random-0.1-s0"
    ]


def test_a_subset_of_an_earlier_version_opens_and_is_the_same_subset(ours: Path):
    (result,) = built("-w", ours, "--frac", "0.1", "--method", "hardest")
    path = Path(result["path"]) / "subset.json"
    record = json.loads(path.read_text())
    newer = ["nested", "min_per_class", "center", "drop_hardest", "features_of", "features_fingerprint"]
    newer += ["weights_fingerprint", "select_s", "scores_fingerprint", "cache_fingerprint"]
    edited(path, **dict.fromkeys(newer))
    assert set(record) - set(json.loads(path.read_text())) == set(newer)
    bundle = open_bundle(path.parent)
    assert bundle.weights_m is None and bundle.record.min_per_class == 1
    with unchanged(ours):
        built("-w", ours, "--frac", "0.1", "--method", "hardest")


@pytest.mark.parametrize("encoding", ["float32", "int8"])
def test_other_encodings_that_keep_all_logits_choose_as_well(ours: Path, encoding: str):
    made("cache-teacher", "-w", ours, "--dataset", "digits", "--views", "1", "--encoding", encoding, "--force")
    results = built("-w", ours, "--frac", "0.2", "--method", "contextual-diversity", "--method", "grad-match")
    assert [result["rows"] for result in results] == [round(0.2 * ROWS)] * 2


def test_logits_are_the_canonical_views_as_they_are_stored(ours: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    choose = pipeline.SubsetRequest.choose

    def watched(asked: Any, method: str, pool: Any, *more: Any) -> Any:
        seen.append(pool)
        return choose(asked, method, pool, *more)

    monkeypatch.setattr(pipeline.SubsetRequest, "choose", watched)
    made("cache-teacher", "-w", ours, "--dataset", "digits", "--views", "2", "--encoding", "int8", "--force")
    built("-w", ours, "--frac", "0.2", "--method", "craig")
    with open_cache(ours / "teachers" / "digits-resnet8" / "cache.h5") as cache:
        stored = cache.encoded_rows(0, np.arange(ROWS))
        features_nd = cache.read("features")
    assert np.array_equal(seen[-1].logits_nc, Encoding.parse("int8", 10).dense(stored))
    assert np.array_equal(seen[-1].features_nd, features_nd)
    assert not seen[-1].features_nd.flags.owndata and not seen[-1].features_nd.flags.writeable  # a map, not a copy
    labels_n = open_packed(ours / "data" / "digits").split("train").labels_n
    assert np.array_equal(seen[-1].labels_n, labels_n)


# what people read


def test_list_methods_tells_all_and_needs_nothing(tmp_path: Path):
    shown = kdtool("build-subset", "--list-methods", "-w", tmp_path / "none")
    assert shown.exit_code == 0 and not (tmp_path / "none").exists()
    rows = {line.split("|")[1].strip(): line for line in shown.stdout.splitlines()[2:]}
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        assert method.paper in rows[name] and method.cost in rows[name]
        assert all(need in rows[name] for need in method.needs)
    as_json = json.loads(kdtool("build-subset", "--list-methods", "--json").stdout)
    assert list(as_json) == list(METHODS)
    assert as_json["craig"] == {
        "needs": ["features", "logits"],
        "cost": METHODS["craig"].cost,
        "weights": True,
        "paper": METHODS["craig"].paper,
    }


def test_people_are_pointed_to_the_random_subset_once_until_it_is_there(ours: Path, monkeypatch: pytest.MonkeyPatch):
    words = (*DIGITS, "-w", ours, "--frac", "0.1", "--frac", "0.2", "--seed", "2", "--method", "hardest")
    result = kdtool(*words, "--method", "herding")
    pointed = f"kdtool build-subset --dataset digits --frac 0.1 --frac 0.2 --method random --seed 2 -w {ours}"
    assert [line for line in result.stderr.splitlines() if "compare" in line] == [f"compare with: {pointed}"]
    assert "compare" not in result.stdout
    one = built("-w", ours, *words[3:])[0]["random_beside"]
    assert one == f"kdtool build-subset --dataset digits --frac 0.1 --method random --seed 2 -w {ours}"
    assert kdtool(*one.split()[1:]).exit_code == 0
    left = [pointed.replace("--frac 0.1 ", "")]
    assert [result["random_beside"] for result in built("-w", ours, *words[3:])] == [None, *left]
    assert "compare" not in kdtool(*words, "--method", "random").output  # both were asked for
    assert "compare" not in kdtool(*words).output
    monkeypatch.chdir(ours)
    Path("kdtool-work").symlink_to(".")
    assert "-w" not in made(*DIGITS, "--frac", "0.3", "--method", "hardest")["random_beside"]


def test_one_subset_prints_one_line_and_several_one_each(ours: Path):
    assert len(kdtool(*DIGITS, "-w", ours, "--frac", "0.1").stdout.splitlines()) == 1
    several = kdtool(*DIGITS, "-w", ours, "--frac", "0.1", "--frac", "0.2", "--method", "easiest").stdout.splitlines()
    assert [line.split(" rows ")[1].split(",")[0] for line in several] == ["(0.1", "(0.2"]


# what is refused, before anything is written


REFUSED = [
    (("--frac", "0.1", "--frac", "1.5"), 2, "--frac must be above 0 and at most 1, got 1.5"),
    (("--frac", "0.1", "--frac", "0.001"), 2, "Use --frac 0.007 or more"),
    (("--frac", "0.01", "--min-per-class", "20"), 2, "--min-per-class 20"),
    (("--frac", "0.1", "--min-per-class", "0"), 2, "--min-per-class must be at least 1, got 0"),
    (("--frac", "0.1", "--method", "random", "--method", "hearding"), 2, "did you mean herding?"),
    (("--frac", "0.1", "--frac", "0.2", "--name", "one"), 2, "--name one", "2 were asked for"),
    (("--frac", "0.1", "--name", "a/b"), 2, "--name must be a plain folder name"),
    (("--frac", "0.1", "--method", "herding", "--score", "el2n"), 2, "--score has no meaning for --method herding"),
    (("--frac", "0.1", "--center", "0.5"), 2, "--center has no meaning for --method random", "window"),
    (
        ("--frac", "0.1", "--method", "window", "--drop-hardest", "0.1"),
        2,
        "--drop-hardest has no meaning",
        "stratified or d2",
    ),
    (("--frac", "0.1", "--method", "hardest", "--device", "cpu"), 2, "--device has no meaning", "herding"),
    (("--frac", "0.1", "--method", "herding", "--device", "gpu"), 2, "--device gpu"),
    *[
        (("--frac", "0.1", "--method", "window", f"--center={value}"), 2, "--center", value)
        for value in ("-1", "2", "nan")
    ],
    *[
        (("--frac", "0.1", "--method", "stratified", f"--drop-hardest={value}"), 2, "--drop-hardest", value)
        for value in ("-0.1", "1.0", "nan")
    ],
    (("--frac", "0.1", "--method", "random", "--method", "hardest", "--score", "eln2"), 2, "did you mean el2n?"),
]


@pytest.mark.parametrize(("words", "code", "said"), [(case[0], case[1], case[2:]) for case in REFUSED], ids=str)
def test_what_cannot_be_is_refused_before_anything_is_written(
    cached: Path, words: tuple[str, ...], code: int, said: tuple[str, ...]
):
    refused(cached, (*DIGITS, *words), code, *said)


@pytest.mark.parametrize("method", [*SEEING, "hardest"])
def test_a_missing_cache_is_answered_with_the_command_that_makes_it(cached: Path, tmp_path: Path, method: str):
    shutil.copytree(cached / "data", tmp_path / "data")
    said = ("cache.h5: not found", "Run: kdtool cache-teacher --dataset digits --teacher digits-resnet8")
    refused(tmp_path, (*DIGITS, "--frac", "0.1", "--method", "random", "--method", method), 1, *said)


def test_a_cache_of_top_logits_serves_features_and_refuses_logits(ours: Path):
    made("cache-teacher", "-w", ours, "--dataset", "digits", "--views", "2", "--encoding", "topk:3", "--force")
    words = (*DIGITS, "--frac", "0.1", "--method", "random", "--method", "craig", "--method", "cal", "--method", "d2")
    line = refused(ours, words, 2, "--method craig, cal: needs the logits of all classes", "topk:3")
    command = line.split("Run: ")[1]
    assert "--encoding int8" in command and "--views 2" in command
    built("-w", ours, "--frac", "0.1", "--method", "herding")
    assert kdtool(*command.split()[1:], "-w", ours).exit_code == 0
    assert len(built("-w", ours, *words[3:])) == 4


@pytest.mark.parametrize(("name", "method"), [("features", "herding"), ("slots/0/logits", "contextual-diversity")])
def test_a_flipped_bit_of_what_a_method_looks_at_is_refused(ours: Path, name: str, method: str):
    path = ours / "teachers" / "digits-resnet8" / "cache.h5"
    with open_cache(path) as cache:
        array = cache.read(name)
    flipped(path, array)
    said = (f"/{name}", "fails its checksum", "Run: kdtool cache-teacher")
    refused(ours, (*DIGITS, "--frac", "0.1", "--method", method), 1, *said)


def test_a_cache_of_other_data_is_not_looked_at(ours: Path):
    rewritten(ours / "teachers" / "digits-resnet8" / "cache.h5", dataset="mnist", data_fingerprint="0" * 16)
    refused(ours, (*DIGITS, "--frac", "0.1", "--method", "herding"), 1, "made from mnist", "kdtool cache-teacher")


def test_without_a_fraction_the_help_is_named(tmp_path: Path):
    fails(kdtool("build-subset", "--method", "random", "-w", tmp_path), 2, "--frac", "--help")
    assert held(tmp_path) == {}
