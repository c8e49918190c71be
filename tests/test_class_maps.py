"""Which of a teacher's classes the data's are: by name, by ImageNet's folders, or by a class map; and the network that
gives these alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from toolkit.core.errors import UsageError
from toolkit.core.hashing import fingerprint
from toolkit.models import class_maps
from toolkit.models.class_maps import Columns, mapped, matched, only_classes
from toolkit.models.pretrained import PretrainedTeacher, build_network, pretrained_teacher
from toolkit.models.zoo import FeatureReader, check_network, head_of
from toolkit.pipeline.library_teachers import LibraryAsked, _tell


@pytest.fixture(scope="module")
def teacher() -> PretrainedTeacher:
    return pretrained_teacher("torchvision:resnet18@IMAGENET1K_V1")


def test_names_match_in_any_order_case_and_underscores_aside(teacher: PretrainedTeacher):
    (categories,) = teacher.class_names
    found = matched(["Great_White_Shark", "Cardigan", "cardigan", "TENCH"], teacher)
    assert [categories[column] for column in found.columns_c] == ["great white shark", "Cardigan", "cardigan", "tench"]
    assert matched([name.upper().replace(" ", "_") for name in categories], teacher).columns_c is None


def test_imagenets_folders_are_its_classes_in_order(teacher: PretrainedTeacher, monkeypatch: pytest.MonkeyPatch):
    folders = [f"n{number:08d}" for number in range(1000)]
    with pytest.raises(UsageError, match="not found by name"):
        matched(folders, teacher)
    monkeypatch.setattr(class_maps, "IMAGENET_FOLDERS", fingerprint("\n".join(folders)))
    found = matched(folders, teacher)
    assert found.columns_c is None and not found.by_name
    notes: list[str] = []
    data = SimpleNamespace(height=224, width=224, plan=SimpleNamespace(finite=True))
    _tell(teacher, data, found, LibraryAsked(on_note=notes.append))
    (note,) = notes
    assert found.said in note and "the data's folders are ImageNet's, in the order of its classes" in note
    with pytest.raises(UsageError, match="not found by name"):
        matched(folders[::-1], teacher)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["tench", "left spanner", "right spanner"], "2 of the data's 3 classes.*left spanner, right spanner"),
        (["tench", "Tench"], "2 of the data's 2 classes"),  # both the same of the teacher's
        (["tench", "CARDIGAN"], "1 of the data's 2 classes.*CARDIGAN"),  # the dog, or the jacket
    ],
)
def test_classes_without_one_match_each_are_refused_by_name(names: list[str], told: str, teacher: PretrainedTeacher):
    with pytest.raises(UsageError, match=told):
        matched(names, teacher)


@pytest.mark.parametrize(
    "content",
    [
        "left spanner: 5\ngoldfish: goldfish\nright_spanner: 'Great White Shark'\n",
        json.dumps({"left spanner": "5", "goldfish": "1", "right_spanner": 2}),
    ],
)
def test_a_class_map_takes_names_and_numbers_in_yaml_and_json(content: str, teacher: PretrainedTeacher, tmp_path: Path):
    file = tmp_path / "map"
    file.write_text(content)
    assert mapped(["left spanner", "goldfish", "right_spanner"], teacher, file).columns_c == (5, 1, 2)


def test_names_that_yaml_takes_for_other_things_are_names(teacher: PretrainedTeacher, tmp_path: Path):
    file = tmp_path / "map.yaml"
    file.write_text("no: 1\n3: 2\n1.50: 3\n")
    assert mapped(["no", "3", "1.50"], teacher, file).columns_c == (1, 2, 3)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: 1", "lacks b"),
        ("{a: 1, b: 2, c: 3}", "names c, which the data have not"),
        ("{a: 1, b: 1000}", "b: 1000, but the teacher's classes are 0 to 999"),
        ("{a: 1, b: -1}", "'-1' is not the name"),
        ("{a: 1, b: spanner}", "'spanner' is not the name of just one class"),
        ("{a: 1, b: goldfish}", "a and b are both the teacher's class 1"),
        ("a: 1\nb: 2\na: 3", "a stand there twice"),
        ("{a: [1], b: 2}", "expected a teacher's class for each"),
        ("[1, 2]", "expected a teacher's class for each"),
        ("", "expected a teacher's class for each"),
        ("{a: 1", "neither YAML nor JSON"),
    ],
)
def test_every_line_of_a_class_map_is_checked(content: str, told: str, teacher: PretrainedTeacher, tmp_path: Path):
    file = tmp_path / "map.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=told):
        mapped(["a", "b"], teacher, file)


def test_without_timm_some_of_imagenets_folders_are_a_line_that_says_what_to_do(
    teacher: PretrainedTeacher, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "timm.data", None)
    with pytest.raises(UsageError, match=r"2 of the data's 2 .*install 'kdtool\[timm\]'.* Or say .*--class-map"):
        matched(["n01440764", "n02102040"], teacher)


@pytest.mark.parametrize("arch", ["torchvision:resnet18", "torchvision:squeezenet1_1"])
def test_selected_classes_are_the_full_logits_indexed_and_features_stay(arch: str):
    network, columns = build_network(arch, 1000).eval(), [7, 3, 999]
    check_network(network, arch, 1000, 40, 40, trains=False)
    x_bchw = torch.randn(4, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features_bd, logits_bt = FeatureReader(network)(x_bchw)
    fewer = only_classes(network, columns)
    with torch.inference_mode():
        found_bd, logits_bc = FeatureReader(fewer)(x_bchw)
    torch.testing.assert_close(logits_bc, logits_bt[:, columns])
    if isinstance(fewer, Columns):
        assert head_of(fewer) is None
    else:
        assert head_of(fewer).weight.shape[0] == 3
        assert torch.equal(found_bd, features_bd)
