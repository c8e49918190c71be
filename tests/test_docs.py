"""Every command and every code block of README.md and docs/ runs, in order, each page in a folder of its own.

scripts/pages.py says how pages are marked. What is not run is parsed: its programs, commands and options exist. Links
and anchors are checked by mkdocs (`make docs`).
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser as torchrun_parser

from benchmarks import imagenet
from scripts.command_reference import PAGE, reference
from scripts.pages import LONG, NOT_RUN, ROOT, RUN, Page, Step, agrees, kdtool_words, marked, read_page, run_page
from tests.conftest import kdtool, made
from tests.test_commands import FASHION
from toolkit.cli import cli
from toolkit.core.recipes import resolve_recipe
from toolkit.models.pretrained import build_network, pretrained_teacher

ONLY_PARSED = {
    "docs/imagenet.md": "needs ImageNet and GPUs",
    "docs/python.md": "tests/test_docs_python.py runs it",
}
# What the programs in README.md take for granted
README_FIRST = ["kdtool cache-teacher", "kdtool build-subset --frac 0.5"]
README_SMALL = (500, ["--epochs", "1"])


def readme_names() -> dict[str, Any]:
    return {"student": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 10))}


PAGES = {
    str(path.relative_to(ROOT)): read_page(path)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
RUNNING = [
    name for name, page in PAGES.items() if name not in ONLY_PARSED and any(step.mode == RUN for step in page.steps)
]


def steps_with(kind: str) -> list[Any]:
    found = ((name, step) for name, page in PAGES.items() for step in page.steps if step.kind == kind)
    return [pytest.param(step, id=f"{name}:{step.line}") for name, step in found]


@pytest.mark.parametrize("step", steps_with("command"))
def test_a_command_names_what_there_is(step: Step):
    subprocess.run(["bash", "-n", "-c", step.text], check=True)
    words, program = kdtool_words(step.text), shlex.split(step.text, comments=True)
    while "=" in program[0]:
        program = program[1:]
    if program[0] == "torchrun":
        torchrun_parser().parse_args(program[1 : program.index("toolkit") + 1])
    if words is not None:
        parses(words)
    elif program[0] == "make":
        assert re.search(rf"^{program[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program[:2] == ["python", "-m"]:
        assert find_spec(program[2])
    else:
        assert shutil.which(program[0]) or program[0] in ("cd", "export", "apt-get", "pip"), step.text


def parses(words: list[str]) -> None:
    """The command and its options are there, and what they name is known."""
    if not words or words[0].startswith("-"):
        return
    command, rest = cli.commands[words[0]], words[1:]
    if "--help" in rest:
        return
    asked = command.make_context(words[0], rest).params
    if "recipe" in asked and asked["recipe"] is not None and words[0] != "sweep":
        resolve_recipe(asked["recipe"])
    for name in (asked.get("arch"), asked.get("teacher")):
        if isinstance(name, str) and name.startswith(("torchvision:", "timm:")):
            assert pretrained_teacher(name).imagenet if name == asked.get("teacher") else build_network(name, 1000)


@pytest.mark.parametrize("step", steps_with("python"))
def test_a_program_compiles(step: Step):
    compile(step.text, "page", "exec")


def test_the_benchmark_of_the_page_on_imagenet_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shown = [step.text for step in PAGES["docs/imagenet.md"].steps if "benchmarks.imagenet" in step.text]
    assert shown
    for text in shown:
        monkeypatch.setattr("sys.argv", shlex.split(text)[2:])
        imagenet.main()
        assert "hours, 8 GPUs and 64 cores" in capsys.readouterr().out


@pytest.fixture(scope="session")
def small_fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed data called fashion-mnist, of the first 500 images of each split."""
    if not FASHION.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    folder = tmp_path_factory.mktemp("small-fashion")
    for split in ("train", "t10k"):
        for kind, header, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{split}-{kind}-ubyte.gz"
            content = gzip.decompress((FASHION / name).read_bytes())
            head = content[:4] + np.array([500], ">u4").tobytes() + content[8:header]
            (folder / name).write_bytes(gzip.compress(head + content[header : header + 500 * size]))
    made("pack", "-w", folder, "--data-dir", folder)
    return folder / "data" / "fashion-mnist"


def shortened(words: list[str], options: list[str]) -> list[str]:
    """A command's words with these options instead of its own, where it knows them."""
    words = list(words)
    known = {name for parameter in cli.commands[words[0]].params for name in parameter.opts}
    for option, value in zip(options[::2], options[1::2], strict=True):
        if option in words:
            words[words.index(option) + 1] = value
        elif option in known:
            words += [option, value]
    return words


def masked(output: str) -> str:
    """An output without its numbers: on other data the same words are printed."""
    output = re.sub(r"≈?[+-]?\d[\d,]*(\.\d+)?( (?:[KMG]i?B|bytes)\b)?", "#", output)
    return " ".join(re.sub(r"[-| ]*\|[-| :]*", " | ", output).split())


@pytest.mark.parametrize("name", RUNNING)
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    page = PAGES[name]
    readme = name == "README.md"
    images, options = README_SMALL if readme else (page.small_images, page.small_options)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("KDTOOL_WORKSPACE", raising=False)
    if images:
        shutil.copytree(request.getfixturevalue("small_fashion"), tmp_path / "kdtool-work" / "data" / "fashion-mnist")
    for command in README_FIRST if readme else []:
        ran(Step("command", command, RUN, 0), options, {})
    space: dict[str, Any] = {"__name__": "__main__", **(readme_names() if readme else {})}
    for step in page.steps:
        if step.mode == RUN:
            printed = ran(step, options, space)
            if step.output:
                # the small data are packed before the page begins
                shown = re.sub(r"^  before  .*\n", "", step.output, flags=re.MULTILINE) if images else step.output
                assert masked(shown) == masked(printed), f"{name}:{step.line}"
    for module in [key for key, one in sys.modules.items() if str(tmp_path) in str(getattr(one, "__file__", ""))]:
        del sys.modules[module]


def ran(step: Step, options: list[str], space: dict[str, Any]) -> str:
    """What a step prints, run in this process where it is kdtool's or Python."""
    if step.kind == "file":
        Path(step.name).write_text(step.text)
        return ""
    if step.kind == "python":
        shown = io.StringIO()
        with redirect_stdout(shown), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # json.load(open(…)) is short
            exec(compile(step.text, f"line {step.line}", "exec"), space)
        return shown.getvalue()
    words = kdtool_words(step.text)
    if words is None:
        program = shlex.split(step.text)[0]
        if program in ("make", "pip", "apt-get", "git"):
            return ""  # these change more than a folder
        return subprocess.run(["bash", "-c", step.text], check=True, stdout=subprocess.PIPE, text=True).stdout
    result = kdtool(*(shortened(words, options) if words[0] in cli.commands else words))
    assert result.exit_code == 0, f"{step.text}\n{result.output}"
    return result.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name for name in RUNNING if PAGES[name].small_options or any(s.mode == LONG for s in PAGES[name].steps)]
)
def test_a_page_runs_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each step in a shell of its own, and what it prints is what the page shows, but for the numbers marked."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))
    printed = run_page(PAGES[name], tmp_path, lambda line: None)
    for step in PAGES[name].steps:
        if step.output and step.mode != NOT_RUN:
            assert agrees(step.output, printed[step.text]), f"{name}:{step.line}\n{printed[step.text]}"


def test_the_command_reference_is_what_the_commands_say():
    assert PAGE.read_text() == reference(), "Run: python -m scripts.command_reference --write"


def test_a_page_that_shows_something_else_is_found_out():
    shown = marked("a: 93.41 % on the test split, 512 img/s\n| name | top1  |\n|------|-------|\n| a-0.1 | 93.41 |\n")
    assert shown.startswith("a: ≈93.41 % on the test split, ≈512 img/s") and "| a-0.1 |≈93.41 |" in shown
    other = "a: 9.5 % on the test split, 2,048 img/s\n| name | top1 |\n|----|---|\n| a-0.1 | 9.00 |\n"
    assert agrees(shown, other)
    assert not agrees(shown, other.replace("test split", "training split"))
    assert not agrees(shown, other.replace("a-0.1", "a-0.2"))
    assert agrees("about ≈40 s (≈9 img/s)", "about 4 min 18 s (504 img/s)")
    assert not agrees("about ≈40 s", "about 40 images")
    assert masked(shown) == masked(other) != masked(other.replace("name", "names"))


def test_a_block_is_read_as_marked(tmp_path: Path):
    blocks = [
        '```python title="a.py"\nx = 1\n```',
        "<!-- not run: needs a GPU -->\n```sh\nkdtool distill \\\n  --device cuda\n```",
        "```console\n$ kdtool ls\nnothing\n$ kdtool runs\n```",
        "```python\nprint(1)\n```",
        "```text\n1\n```",
    ]
    first = "<!-- make test: 500 images of each split, --epochs 1 -->\n# A page\n\n"
    (tmp_path / "page.md").write_text(first + "\n\n".join(blocks) + "\n")
    page: Page = read_page(tmp_path / "page.md")
    assert (page.small_images, page.small_options) == (500, ["--epochs", "1"])
    assert [(step.kind, step.mode) for step in page.steps] == [
        ("file", RUN),
        ("command", NOT_RUN),
        ("command", RUN),
        ("command", RUN),
        ("python", RUN),
    ]
    assert [step.output for step in page.steps] == [None, None, "nothing\n", "", "1\n"]
    assert kdtool_words(page.steps[1].text) == ["distill", "--device", "cuda"]


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(https?:[^\" >]+)", page.read_text())
        assert fetched == [], page
