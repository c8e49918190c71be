"""Every error that the code base raises on purpose, found in its source: each says what it is about, what was found,
and what to do next or what may be given, in one line. What no rule can see, the tests of each command look at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLKIT = Path(__file__).parents[1] / "toolkit"
ERRORS = {"UsageError", "FailureError", "BadParameter", "Locked", "Diverged", "Stopped"}  # of ours, and click's
MOST = 300  # characters of literal text
RUN_ON = 170  # of them without a sign that lets the reader breathe

NEXT = (
    *("add", "build", "call", "check", "choose", "copy", "cut", "delete", "did you mean", "do one of", "free", "get"),
    *("give", "install", "keep", "leave", "load", "look", "lower", "make", "mend", "move", "name", "open", "pack"),
    *("pass", "put", "re-run", "rename", "repeat", "resize", "return", "run", "save", "say", "search", "set", "start"),
    *("take", "tell", "the same", "train", "try", "use", "wait"),
)
# What is put in under these names says the next step itself: a sentence, or all the names that there are.
CARRIED = (
    *("AGAIN", "again", "instead", "ways", "hint", "_EXPECTED", "missing", "skipped", "known", "unknown_name"),
    *("_near", "_nearest", "there"),
)
ALLOWED = ("must", "expected", "known are", "needs", "belongs to", "is for", "such as", "but the", "keep from")
BANNED = ("invalid", "illegal", "error occurred", "exception", "traceback", "please", "oops", "failed to", "unexpected")
SUBJECTS = (
    *("--", "{", "RANK", "data set", "teacher", "score", "row", "view plan", "family of views", "a family", "training"),
    *(
        "subset",
        "padding",
        "stopped",
        "targets",
        "sweep",
        "loader",
        "batch_size",
        "slot",
        "split",
        "unknown {",
        "only {here}",
        "expected",
    ),
)


@dataclass(frozen=True)
class Said:
    """One message, as the source has it: what is put in stands in braces."""

    where: str
    text: str

    @property
    def put_in(self) -> list[str]:
        return re.findall(r"\{([^{}]*)\}", self.text)

    @property
    def literal(self) -> str:
        return re.sub(r"\{[^{}]*\}", "", self.text)


_OWN_CODE = "code of the user's own failed: what it said is what there is to mend"
_PASSED_ON = "ends with another error's words, which are looked at where they are written"

# By a part of the message: why it need not say what next.
EXCEPTIONS: dict[str, str] = {
    "{asked}: {name} could not be imported: {told(error)}": _OWN_CODE,
    "{of}: called with '{split}' it fails: {told(error)}": _OWN_CODE,
    "{of}, {split} split: has no length: {told(error)}": _OWN_CODE,
    "{of}: row {row} could not be read: {told(error)}": _OWN_CODE,
    "--arch {arch}: called with {classes} classes it fails: {told(error)}": _OWN_CODE,
    "data set {dataset}, {split} split: {error}": _PASSED_ON,
    "{table.name}: {str(error).removeprefix('teacher: ')}": _PASSED_ON,
    "{error}; or module:function for one of your own": _PASSED_ON,
    "{error}. '{command}' computes {more}": _PASSED_ON,
    "{asked} {there} in torchvision": "lists the weights that there are",
    "{_NO_CLASSES}": "the network is none that can teach, and other names are a matter of the library's pages",
    "timm could not be imported: {told(error)}": "a library's own words on what it lacks",
    "huggingface_hub could not be imported: {told(error)}": "a library's own words on what it lacks",
    "timm can't build it: {told(error)}": "a library's own words on the name it was given",
}


def text_of(node: ast.expr) -> str:
    """A string as it stands, with {…} for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return "{" + re.sub(r"[{}]", "", ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node)) + "}"


def raised() -> Iterator[Said]:
    for path in sorted(TOOLKIT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] in ERRORS:
                yield Said(f"{path.relative_to(TOOLKIT)}:{node.lineno}", text_of(node.args[0]))


MESSAGES = list(raised())


def names_its_subject(said: Said) -> bool:
    return said.text.startswith(SUBJECTS)


def says_what_next(said: Said) -> bool:
    words = "|".join(map(re.escape, NEXT))
    next_step = re.search(
        rf"(^|[.;:?…] |[}}] ?|\bor |\band |, |, so |again |rows |set )({words})\b", said.text, re.IGNORECASE
    )
    carried = any(re.search(rf"\b{word}\b", put_in) for put_in in said.put_in for word in CARRIED)
    return bool(next_step) or carried or any(word in said.literal for word in ALLOWED)


def is_one_line(said: Said) -> bool:
    return "\n" not in said.text and "  " not in said.text


def is_short(said: Said) -> bool:
    return len(said.literal) <= MOST


def is_no_run_on(said: Said) -> bool:
    return all(len(clause) <= RUN_ON for clause in re.split(r"[.,;:?()…]", said.literal))


def has_no_final_full_stop(said: Said) -> bool:
    return not said.text.rstrip().endswith((".", "!", ","))


def begins_sentences_with_capitals(said: Said) -> bool:
    return not re.search(r"[a-z)}'’]\. [a-z]", said.text.replace("--", "A"))


def blames_and_begs_nobody(said: Said) -> bool:
    return not any(word in said.text.lower() for word in BANNED)


RULES = (
    names_its_subject,
    says_what_next,
    is_one_line,
    is_short,
    is_no_run_on,
    has_no_final_full_stop,
    begins_sentences_with_capitals,
    blames_and_begs_nobody,
)


def excused(said: Said) -> bool:
    return any(part in said.text for part in EXCEPTIONS)


def is_passed_on(said: Said) -> bool:
    """Made of another error's words, or of a function's, which are looked at where they are written."""
    return re.fullmatch(r"\{[^{}]*\}", said.text) is not None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_error_keeps_the_rule(rule):
    broken = [
        f"{said.where}: {said.text}"
        for said in MESSAGES
        if not is_passed_on(said) and not rule(said) and not (rule is says_what_next and excused(said))
    ]
    assert not broken, "\n".join(broken)


def test_no_exception_has_outlived_its_error():
    assert [part for part in EXCEPTIONS if not any(part in said.text for said in MESSAGES)] == []


def test_the_errors_are_found_at_all():
    assert len(MESSAGES) > 400
    assert {said.where.partition("/")[0] for said in MESSAGES} >= {
        "cli",
        "core",
        "data",
        "formats",
        "models",
        "pipeline",
    }


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("something went wrong", names_its_subject),
        ("--lr: not a number", says_what_next),
        ("--lr is 3\n. Use another", is_one_line),
        ("--lr " + "is much too large, " * 20 + "use another", is_short),
        ("--lr " + "is much too large " * 12, is_no_run_on),
        ("--lr must be above 0.", has_no_final_full_stop),
        ("{path}: damaged. make it again", begins_sentences_with_capitals),
        ("--lr: invalid value, use another", blames_and_begs_nobody),
    ],
)
def test_a_rule_finds_what_breaks_it(text: str, rule):
    assert not rule(Said("here", text))


@pytest.mark.parametrize("said", ["{path}: not found. Run: {made_by}", "--lr must be a positive number, got {lr}"])
def test_a_good_message_keeps_all_rules(said: str):
    assert all(rule(Said("here", said)) for rule in RULES)
