"""docs/formats.md says exactly what files hold: every table beside files of that kind, both ways.

A comment above a table says what it is of: `datasets: KIND` of an HDF5 file, `fields: KIND` of a record.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import made
from toolkit.core.recipes import recipe_settings, resolve_recipe
from toolkit.formats.beton import open_beton
from toolkit.formats.blocks import BLOCK_ROWS

PAGE = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
PACKAGED = Path(__file__).parents[1] / "toolkit" / "pretrained" / "fashion-mnist-resnet20.scores.h5"
IS: dict[str, Any] = {
    "text": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "list of texts": lambda value: isinstance(value, list) and all(map(IS["text"], value)),
    "list of integers": lambda value: isinstance(value, list) and all(map(IS["integer"], value)),
    "list of numbers": lambda value: isinstance(value, list) and all(map(IS["number"], value)),
}

Table = dict[str, list[str]]  # the cells of a row, by what stands first in it


def table(title: str) -> Table:
    """The table under a comment."""
    found = re.search(rf"<!-- {re.escape(title)} -->\n((?:\|.*\n)+)", PAGE)
    assert found, title
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[1].splitlines()[2:]]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with every kind of file, each optional field in one of them."""
    work, folder = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("pictures")
    data = ("-w", work, "--dataset", "digits")
    small = ("--arch", "resnet8", "--width", 4, "--epochs", 2)
    made("noise", *data, "--rate", 0.1)
    made("train-teacher", *data, *small, "--snapshots", "1", "--name", "t")
    for encoding in ("topk:3", "int8", "float32", "float16"):
        made("cache-teacher", *data, "--teacher", "t", "--encoding", encoding, "--no-verify", "--force")
        cache = work / "teachers" / "t" / "cache.h5"
        (work / f"{encoding.replace(':', '')}.h5").write_bytes(cache.read_bytes())
    made("score", *data, "--teacher", "t", "--score", "forgetting", "--score", "prototype", "--score", "knn_distance")
    made("build-subset", *data, "--frac", 0.1, "--method", "craig", "--teacher", "t", "--name", "half")
    asked = ("distill", "-w", work, "--subset", "half", "--epochs", 1)
    made(*asked, "--alpha", "search", "--name", "searched")
    made(*asked, "--loss", "dkd", "--alpha", 0.5, "--label-smoothing", 0.1, "--ema", 0.9, "--weights", "--name", "all")
    made(*asked, "--arch", "examples.own_network:small", "--alpha", 0, "--name", "own")
    made("sweep", *data, "--frac", 0.1, "--alpha", 0, "--width", 4, "--epochs", 1, "--jobs", 1, "--name", "s")
    pictures(folder)
    made("pack", "-w", work, "--dataset", "imagefolder-p", "--data-dir", folder, "--on-bad", "skip", "--workers", 1)
    return work


def pictures(folder: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(folder / split / name / "1.png")
    (folder / "train" / "a" / "2.png").write_text("no picture")


def h5_files(work: Path) -> dict[str, list[Path]]:
    return {
        "cache": [*work.glob("*.h5"), work / "subsets" / "half" / "targets" / "t.h5"],
        "dynamics": [work / "teachers" / "t" / "dynamics.h5"],
        "scores": [work / "scores" / "digits" / "t.h5", PACKAGED],
        "weights": [work / "subsets" / "half" / "weights.h5"],
    }


def datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    yield from found


def pattern_of(listed: str) -> str:
    return "".join("[^/]+" if part.startswith("<") else re.escape(part) for part in re.split(r"(<\w+>)", listed[1:]))


@pytest.mark.parametrize("kind", ["cache", "dynamics", "scores", "weights"])
def test_every_dataset_is_listed_with_its_type_and_every_listed_one_is_there(work: Path, kind: str):
    listed, met = table(f"datasets: {kind}"), set()
    for path in h5_files(work)[kind]:
        with h5py.File(path) as file:
            for name, dataset in datasets(file):
                if name.startswith("checksums/"):
                    assert dataset.dtype == np.uint32 and name.removeprefix("checksums/") in file
                    continue
                [row] = [row for row in listed if re.fullmatch(pattern_of(row), name)]
                met.add(row)
                shape, kinds = listed[row][:2]
                assert str(dataset.dtype) in re.split(r", | or ", kinds), (name, dataset.dtype)
                assert len(dataset.shape) == len(re.findall(r"\w+", shape)), name
                assert dataset.chunks is None and dataset.dtype.byteorder in "<=|"
                checksums = [zlib.crc32(dataset[at : at + BLOCK_ROWS]) for at in range(0, len(dataset), BLOCK_ROWS)]
                assert file[f"checksums/{name}"][()].tolist() == checksums
    assert met == set(listed)


@pytest.mark.parametrize("kind", ["cache", "dynamics", "scores", "weights"])
def test_the_attributes_are_those_said(work: Path, kind: str):
    for path in h5_files(work)[kind]:
        with h5py.File(path) as file:
            assert set(file.attrs) == {"schema", "record"} and isinstance(file.attrs["record"], str)
            schema = file.attrs["schema"]
            assert schema == 2 and schema.dtype == np.int64 if kind == "cache" else f"`{schema}`" in PAGE


def test_the_attributes_of_scores_are_those_said(work: Path):
    listed, met = table("attributes: scores"), set()
    for path in [*h5_files(work)["scores"], *h5_files(work)["cache"]]:
        with h5py.File(path) as file:
            for name, dataset in datasets(file):
                if name.startswith("scores/"):
                    found = dict(dataset.attrs)
                    assert {
                        key: "text" if isinstance(value, str) else str(value.dtype) for key, value in found.items()
                    } == {key: listed[key][0] for key in found}
                    assert ("of" in found) == ("source" in found) == (path not in h5_files(work)["cache"])
                    met |= set(found)
    assert met == set(listed)


def records(work: Path) -> dict[str, list[dict[str, Any]]]:
    """What each table of fields is of."""

    def stored(path: Path) -> dict[str, Any]:
        with h5py.File(path) as file:
            return json.loads(file.attrs["record"])

    def read(pattern: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for path in sorted(work.glob(pattern)) for line in lines(path)]
        assert found, pattern
        return found

    def lines(path: Path) -> list[str]:
        return path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]

    runs = read("runs/*/run.json")
    return {
        **{f"{kind} record": list(map(stored, paths)) for kind, paths in h5_files(work).items() if kind != "weights"},
        "data.json": read("data/*/data.json"),
        "noise.json": read("data/*/noise.json"),
        "subset.json": read("subsets/*/subset.json"),
        "loader.json": read("subsets/*/loader.json"),
        "run.json": runs,
        "run result": [run["result"] for run in runs],
        "run settings": [run["settings"] for run in runs],
        "metrics.jsonl": read("*/*/metrics.jsonl"),
        "checkpoint": [torch.load(path, weights_only=True) for path in work.glob("*/*/*.pt")],
        "results.jsonl": read("sweeps/*/results.jsonl"),
    }


NOT_MADE_HERE = {  # optional fields that need another library, or a failure
    "cache record": {"teacher_weights"},
    "results.jsonl": {"error", "trace"},
}


@pytest.mark.parametrize("kind", re.findall(r"<!-- fields: (.+) -->", PAGE))
def test_every_field_is_listed_with_its_type_and_every_listed_one_is_there(work: Path, kind: str):
    listed, found = table(f"fields: {kind}"), records(work)[kind]
    for record in found:
        assert set(record) <= set(listed)
        for name, (kinds, *_) in listed.items():
            optional = kinds.endswith(", optional")
            assert name in record or optional, name
            if name in record:
                allowed = kinds.removesuffix(", optional").split(" or ")
                assert any(IS[one](record[name]) for one in allowed), (name, record[name])
    assert set().union(*found) == set(listed) - NOT_MADE_HERE.get(kind, set())


def test_a_teachers_record_is_as_said(work: Path):
    teacher = json.loads((work / "teachers" / "t" / "train.json").read_text())
    assert set(teacher) == {"result", "settings", "threads", "command", "created", "versions"}
    assert {"dataset", "snapshots"} <= set(teacher["settings"]) and "teacher" not in teacher["settings"]
    spared = recipe_settings(resolve_recipe("ffcv-imagenet-rn18-16"))
    assert spared["batchnorm_decay"] is False and "spares batch normalisation" in PAGE


def test_a_beton_is_read_by_the_page(work: Path):
    parts = table("beton")
    shown = {part: re.findall(r"`(\w+)` (?:(\d+) × )?(\w+)", cells[0]) for part, cells in parts.items()}
    layout = {
        part: np.dtype([(name, kind, (int(count),) if count else ()) for name, count, kind in of])
        for part, of in shown.items()
    }
    sizes = {part: int(cells[1].replace(",", "")) for part, cells in parts.items() if cells[1]}
    record = next(part for part in layout if part.startswith("record"))
    names = list(layout[record].names or ())
    offsets = [layout[record].fields[name][1] + (3 if name in ("label", "row") else 0) for name in names]
    layout[record] = np.dtype(
        {"names": names, "formats": [layout[record][name] for name in names], "offsets": offsets, "itemsize": 32}
    )
    assert {part: layout[part].itemsize for part in sizes} == sizes
    path = work / "data" / "digits" / "train.beton"
    content, beton = path.read_bytes(), open_beton(path)
    header = np.frombuffer(content, layout["header"], 1)[0]
    assert (header["version"], header["fields"], header["rows"]) == (2, 3, len(beton))
    at = sizes["header"]
    fields = np.frombuffer(content, layout["field, three times"], 3, at)
    assert [bytes(name).rstrip(b"\0") for name in fields["name"]] == [b"image", b"label", b"row"]
    rows = np.frombuffer(content, layout[record], len(beton), at + 3 * sizes["field, three times"])
    assert np.array_equal(rows["label"], beton.labels_n) and np.array_equal(rows["row"], beton.rows_n)
    allocation = next(part for part in layout if part.startswith("allocation"))
    table_n = np.frombuffer(content, layout[allocation], len(beton), int(header["table"]))
    assert table_n["bytes"].sum() == rows["height"].astype(int) @ rows["width"].astype(int) * 3
    pixels = np.frombuffer(content, np.uint8, 8 * 8 * 3, int(rows["ptr"][5])).reshape(8, 8, 3)
    assert np.array_equal(pixels, beton.frames()[5])


def test_the_workspace_holds_no_other_files(work: Path):
    """Every file lies where the page's tree says."""
    tree = PAGE[PAGE.index("kdtool-work/\n") : PAGE.index("```", PAGE.index("kdtool-work/\n"))]
    for path in work.glob("*/*/*"):
        folder = path.relative_to(work).parts[0]
        if path.is_dir() or path.name.endswith(".lock"):
            continue
        [line] = [line for line in tree.splitlines() if line.strip().startswith(f"{folder}/")]
        assert path.name in line or f"<teacher>{path.suffix}" in line, path
