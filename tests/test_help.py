"""Help that says what each command reads and writes, shells that complete names, and unknown names that are answered
with the nearest known one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tests.conftest import kdtool, made, refused
from tests.test_startup import HEAVY, modules_after
from toolkit.cli import cli, completing, sections

COMMANDS = list(cli.commands)


def section(shown: str, word: str) -> str:
    """What stands behind `word`, its lines joined."""
    lines = shown.splitlines()
    start = next(at for at, line in enumerate(lines) if line.strip().startswith(word))
    rest = [lines[start].strip().removeprefix(word)]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 12):
            break
        rest.append(line)
    return " ".join(" ".join(rest).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_one_line_and_says_what_it_reads_and_writes(name: str):
    shown = kdtool(name, "--help").output
    first = shown.splitlines()[2].strip()
    assert first[0].isupper() and len(first) > 10
    assert section(shown, "Reads:") and section(shown, "Writes:")
    example = section(shown, "Example:").split()
    assert example[:2] == ["kdtool", name]
    cli.commands[name].make_context(name, example[2:])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_shows_whole_sentences(name: str):
    lines = [line for line in kdtool("--help").output.splitlines() if line.startswith(f"  {name} ")]
    assert len(lines) == 1 and lines[0].endswith(".") and not lines[0].endswith("...")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_and_shows_its_default(name: str):
    shown = " ".join(kdtool(name, "--help").output.split())
    for option in cli.commands[name].params:
        if not isinstance(option, click.Option) or option.name == "help":
            continue
        assert option.help, f"{name} {option.opts[0]}"
        assert option.help.split()[0][:12] in shown
        default = option.to_info_dict()["default"]
        if default not in (None, False, ()) and not option.is_flag:
            assert option.show_default or "[default:" in option.help, f"{name} {option.opts[0]}"


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_many_commands_have_stand_under_headings_after_a_commands_own(name: str):
    shown = kdtool(name, "--help").output.splitlines()
    headings = [line[:-1] for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert headings == [heading for heading in (sections.OWN, *sections.HEADINGS) if heading in headings]
    assert headings[-1] == list(sections.HEADINGS)[-1]
    options = [line for line in shown[shown.index(f"{headings[0]}:") :] if line[:3].strip()]
    assert all(line.startswith("  -") or line[:-1] in headings for line in options)
    last = shown[shown.index(f"{headings[-1]}:") :]
    assert any("--help" in line for line in last)


def test_every_option_under_a_heading_is_some_commands():
    known = {parameter.opts[-1] for command in cli.commands.values() for parameter in command.params} | {"--help"}
    assert {option for options in sections.HEADINGS.values() for option in options} <= known


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_the_terminal(name: str, columns: int):
    shown = cli.commands[name].get_help(click.Context(cli.commands[name], info_name=name, terminal_width=columns))
    written = [line for line in shown.splitlines() if not line.strip().startswith(("-", "Usage:"))]
    most = max(columns, 80)  # what is read, written and an example are wrapped for 80
    assert max(map(len, written)) <= most


# Completion -----------------------------------------------------------------------------------------------------------


def completed(*words: str, workspace: Path | None = None) -> list[str]:
    """What bash is offered for the last of these words, by click's protocol."""
    asked = {"_KDTOOL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["kdtool", *words])}
    place = {} if workspace is None else {"KDTOOL_WORKSPACE": str(workspace)}
    done = subprocess.run(
        [sys.executable, "-c", "from toolkit.cli import main; main()"],
        env={**os.environ, **asked, **place, "COMP_CWORD": str(len(words))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("dis",), ["distill"]),
        (("build-subset", "--met"), ["--method"]),
        (("pack", "--dataset", "dig"), ["digits"]),
        (("distill", "--arch", "resnet5"), ["resnet56"]),
        (("build-subset", "--method", "gra"), ["graph-cut", "grad-match"]),
        (("build-subset", "--score", "el2"), ["el2n", "el2n@"]),
        (("distill", "--loss", "d"), ["dkd", "dist"]),
        (("distill", "--recipe", "pap"), ["paper-cifar", "paper-imagenet"]),
        (("cache-teacher", "--encoding", "fl"), ["float16", "float32"]),
        (("evaluate", "x", "--split", ""), ["train", "test"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("sweep", "--match", "n"), ["nearest"]),
    ],
    ids=str,
)
def test_known_names_are_completed(words: tuple[str, ...], offered: list[str]):
    assert completed(*words) == offered


def test_names_in_the_workspace_are_completed(digits: Path, tmp_path: Path):
    assert completed("distill", "--subset", "", workspace=digits) == ["hard", "third"]
    assert completed("distill", "--subset", "th", workspace=digits) == ["third"]
    assert "digits-resnet8" in completed("distill", "--teacher", "digits", workspace=digits)
    assert completed("distill", "-w", str(digits), "--subset", "h") == ["hard"]
    assert completed("distill", "--subset", "", workspace=tmp_path / "none") == []
    (tmp_path / "w" / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "w" / "runs" / "mine" / "student.pt").touch()
    assert completed("export", "m", workspace=tmp_path / "w") == ["mine"]
    assert not (tmp_path / "none").exists()


def test_completing_imports_nothing_heavy():
    code = """
import os, sys
os.environ.update(_KDTOOL_COMPLETE="bash_complete", COMP_WORDS="kdtool distill --subset ", COMP_CWORD="3")
from toolkit.cli import main
main()
"""
    assert modules_after(code) & HEAVY == set()


def test_what_is_completed_is_what_there_is():
    from toolkit.core.device import PRECISIONS
    from toolkit.core.folder_settings import FAMILIES, ON_BAD, WRITE_MODES
    from toolkit.data.sources import SOURCES
    from toolkit.distill.losses import LOSSES
    from toolkit.formats.encodings import Encoding
    from toolkit.models.zoo import CIFAR_RESNETS
    from toolkit.pipeline.known_teachers import PRETRAINED
    from toolkit.pipeline.score_compute import computable
    from toolkit.pipeline.sources import SOURCES as FED_BY
    from toolkit.selection.methods import METHODS
    from toolkit.training.targets import MATCHES

    assert (*SOURCES, "imagefolder", "imagenet") == completing.DATASETS
    assert tuple(CIFAR_RESNETS) == completing.ARCHS
    assert tuple(METHODS) == completing.METHODS
    assert tuple(name.replace("@E", "@") for name in computable()) == completing.SCORES
    assert tuple(LOSSES) == completing.LOSSES
    assert tuple(MATCHES) == completing.MATCHES
    assert tuple(FED_BY) == completing.SOURCES
    assert tuple(PRECISIONS) == completing.PRECISIONS
    assert tuple(PRETRAINED.values()) == completing.PRETRAINED
    assert (completing.FAMILIES, completing.WRITE_MODES, completing.ON_BAD) == (FAMILIES, WRITE_MODES, ON_BAD)
    for name in completing.ENCODINGS[1:]:
        assert Encoding.parse(f"{name}3" if name.endswith(":") else name, 10)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_the_shells_own(shell: str):
    script = kdtool("completion", shell)
    assert script.exit_code == 0 and f"_KDTOOL_COMPLETE={shell}_complete" in script.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script.stdout, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_by_the_script(digits: Path, tmp_path: Path):
    program = tmp_path / "kdtool"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m toolkit "$@"\n')
    program.chmod(0o755)
    code = """
eval "$(kdtool completion bash)"
COMP_WORDS=(kdtool distill --subset th) COMP_CWORD=3
_kdtool_completion kdtool
echo "${COMPREPLY[@]}"
"""
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KDTOOL_WORKSPACE": str(digits)}
    done = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "third", done.stderr


# Unknown names --------------------------------------------------------------------------------------------------------

D = ("--dataset", "digits")
NEAREST = [
    (("distil",), "distill"),
    (("distill", "--aplha", "1"), "--alpha"),
    (("pack", "--dataset", "digts"), "digits"),
    (("pack", "--dataset", "fashon-mnist"), "fashion-mnist"),
    (("train-teacher", *D, "--arch", "resnt20"), "resnet20"),
    (("distill", "--subset", "third", "--arch", "torchvision:resnet5O"), "torchvision:resnet50"),
    (("build-subset", *D, "--frac", "0.5", "--method", "hardst"), "hardest"),
    (("build-subset", *D, "--frac", "0.5", "--method", "hardest", "--score", "entrpy"), "entropy"),
    (("score", *D, "--score", "prototpye"), "prototype"),
    (("show", *D, "--score", "el2m"), "el2n"),
    (("cache-teacher", *D, "--teacher", "digits-resnet9"), "digits-resnet8"),
    (("verify-cache", *D, "--teacher", "digit-resnet8"), "digits-resnet8"),
    (("cache-teacher", *D, "--teacher", "torchvision:resnet5O"), "resnet50"),
    (("distill", "--subset", "thrid"), "third"),
    (("cache-teacher", "--subset", "thid"), "third"),
    (("compare", *D, "--subset", "third", "--subset", "hrad"), "hard"),
    (("distill", "--subset", "third", "--recipe", "fst"), "fast"),
    (("distill", "--subset", "third", "--loss", "dkdd"), "dkd"),
    (("distill", "--subset", "third", "--match", "nearst"), "nearest"),
    (("distill", "--subset", "third", "--source", "residnt"), "resident"),
    (("distill", "--subset", "third", "--precision", "bfloat61"), "bfloat16"),
    (("cache-teacher", *D, "--encoding", "flaot16"), "float16"),
    (("cache-teacher", *D, "--encoding", "Int8"), "int8"),
    (("export", "onee", "--out", "{tmp}/x.pt"), "one"),
    (("inspect", "{work}/runs/onne"), "one"),
    (("inspect", "{work}/subsetts/third"), "subsets"),
    (("evaluate", "{work}/runs/onne"), "one"),
    (("runs", "--sweep", "stdy"), "study"),
    (("report", "--sweep", "stdy"), "study"),
    (("runs", "--where", "alhpa=1"), "alpha"),
    (("sweep", *D, "--frac", "0.1", "--method", "randon"), "random"),
    (("sweep", *D, "--frac", "0.1", "--loss", "dst"), "dist"),
    (("sweep", *D, "--frac", "0.1", "--teacher", "digits-resnet7"), "digits-resnet8"),
    (("sweep", "{tmp}/sweep.yaml"), "frac"),
]


@pytest.fixture(scope="module")
def work(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run and a sweep, and never written to again."""
    workspace = Path(shutil.copytree(digits, tmp_path_factory.mktemp("names") / "work"))
    made("distill", "-w", workspace, "--subset", "third", "--iterations", 1, "--name", "one")
    asked = ("--frac", "0.1", "--alpha", "0", "--iterations", "1", "--name", "study", "--jobs", "1")
    made("sweep", "-w", workspace, *D, *asked)
    return workspace


@pytest.mark.parametrize(("words", "near"), NEAREST, ids=str)
def test_an_unknown_name_is_answered_with_the_nearest(words: tuple[str, ...], near: str, work: Path, tmp_path: Path):
    (tmp_path / "sweep.yaml").write_text("fracc: [0.1]\n")
    command, *rest = (word.format(work=work, tmp=tmp_path) for word in words)
    place = () if command == "distil" else ("-w", work)
    result = kdtool(command, *place, *rest)
    refused(result, result.exit_code, near)
    assert result.exit_code in (1, 2)
    assert f"id you mean {near}" in result.stderr.replace("'", "").replace("one of: ", "") or near == "--alpha"
