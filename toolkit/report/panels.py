"""Which runs may stand in one picture: those that agree in every setting but the ones the picture is about.

A run without KD has no teacher, temperature or views. It stands beside every group that it agrees with in the rest.
Half the rows are half the steps of an epoch: runs of equal epochs and runs of equal iterations are groups of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.report.runs import OF_RECIPE, Row, in_order, subset_seeds, whole_epochs

TAUGHT = ("teacher_is", "loss", "beta", "temperature", "match", "views", "asked")  # without a meaning where alpha is 0
_SMOOTHING = "label_smoothing"  # without a meaning where alpha is 1
_OF_SUBSET = ("way", "frac", "balance", "nested", "min_per_class", "subset_seed")
_OF_TRAINING = ("recipe", "batch_size", "lr", _SMOOTHING, "ema", "precision", "device", "compiled", "processes")
HELD = ("dataset_is", "arch", "width", *TAUGHT, *_OF_SUBSET, *_OF_TRAINING, *OF_RECIPE)


def prepared(rows: Sequence[Row]) -> list[Row]:
    """The finished runs, each with what it is compared by: `dataset_is` and `teacher_is` (names, told apart where one
    name is of several contents), `way` (the method and what it was told), `asked` (alpha, or the word that chose it)
    and `taught`. A subset's seed counts only where it says more than the run's own, as in `kdtool runs`."""
    done = [row for row in rows if row.get("state", "done") == "done" and row.get("top1") is not None]
    choosers: dict[Any, set[str]] = {}
    for row in done:
        if row.get("chosen_by") is not None:
            choosers.setdefault(row.get("dataset"), set()).add(row["chosen_by"])
    datasets = _told_apart(done, "dataset", "data_fingerprint")
    teachers = _told_apart(done, "teacher", "teacher_fingerprint")
    found = []
    for row in done:
        taught = row.get("alpha") != 0
        asked = row["alpha_asked"] if isinstance(row.get("alpha_asked"), str) else row.get("alpha")
        more = {
            "taught": taught,
            "dataset_is": datasets.get((row.get("dataset"), row.get("data_fingerprint"))),
            "teacher_is": teachers.get((row.get("teacher"), row.get("teacher_fingerprint"))) if taught else None,
            "way": way_of(row, by=len(choosers.get(row.get("dataset"), ())) > 1),
            "asked": asked if taught else None,
        }
        found.append({**row, **more})
    alike = [column for column in (*HELD, "epochs", "iterations") if column != "subset_seed"]
    seeds = subset_seeds(found, alike)
    return [{**row, "subset_seed": seed} for row, seed in zip(found, seeds, strict=True)]


def _told_apart(rows: Sequence[Row], name: str, fingerprint: str) -> dict[tuple[Any, Any], str | None]:
    pairs = list(dict.fromkeys((row.get(name), row.get(fingerprint)) for row in rows))
    several = {one for one, _ in pairs if len({content for other, content in pairs if other == one}) > 1}
    return {
        (one, content): f"{one} ({str(content)[:6]})" if one in several else None if one is None else str(one)
        for one, content in pairs
    }


def way_of(row: Row, by: bool = False) -> str:
    """How the rows were chosen, in words: the method, its score, what else it was told, and where `by` is so the
    teacher that chose."""
    parts = [str(row.get("method") or "unknown"), str(row.get("score") or "")]
    parts += [f"by {row['chosen_by']}"] if by and row.get("chosen_by") is not None else []
    parts += [f"{word} {row[name]:g}" for name, word in _TOLD.items() if row.get(name) is not None]
    parts += ["weighted"] if row.get("weights") is True else []
    return " ".join(part for part in parts if part)


_TOLD = {"center": "at", "drop_hardest": "less"}


@dataclass(frozen=True)
class Group:
    """Runs that agree in all of `held`, and in `length`; `sample` is one of them, a taught one where there is one."""

    rows: tuple[Row, ...]
    held: tuple[str, ...]
    length: str

    @property
    def sample(self) -> Row:
        return next((row for row in self.rows if row["taught"]), self.rows[0])

    @property
    def taught(self) -> list[Row]:
        return [row for row in self.rows if row["taught"]]

    @property
    def plain(self) -> list[Row]:
        return [row for row in self.rows if not row["taught"]]

    def in_words(self, differing: Collection[str]) -> list[str]:
        """What is held fixed: always what matters most, and of the rest what is not the same in all runs."""
        said = []
        for column in self.held:
            # of label smoothing, which a run of alpha 1 has none of, another run in the group may tell
            value = next((row[column] for row in (self.sample, *self.rows) if row.get(column) is not None), None)
            if value is not None and (column in _WORDS or column in differing):
                said.append(_WORDS[column](value) if column in _WORDS else _named(_short(column), value))
        return [*(word for word in said if word), self.length]


def _named(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {_short(value)}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("_", " ")


_WORDS: dict[str, Any] = {
    "dataset_is": str,
    "arch": lambda one: f"student {one}",
    "width": lambda one: "" if one == 16 else f"width {one}",
    "way": str,
    "frac": lambda one: f"{percent(one)} kept",
    "teacher_is": lambda one: f"teacher {one}",
    "loss": lambda one: f"loss {one}",
    "temperature": lambda one: f"τ {one:g}",
    "asked": lambda one: f"α {_short(one)}",
    "views": lambda one: f"{one} view{'' if one == 1 else 's'}",
    "match": lambda one: f"match {one}",
}


def percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"


def groups_of(rows: Sequence[Row], free: Collection[str]) -> list[Group]:
    """Groups that agree in everything but `free` columns and the seed, in the settings' order."""
    held = tuple(column for column in HELD if column not in free)
    shared = [column for column in held if column != _SMOOTHING]  # which is told apart later
    plain_held = [column for column in shared if column not in TAUGHT]
    taught: dict[tuple[str, ...], list[Row]] = {}
    plain: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row["taught"]:
            taught.setdefault(_key(row, shared), []).append(row)
        else:
            plain.setdefault(_key(row, plain_held), []).append(row)
    joined = [members + plain.get(_key(members[0], plain_held), []) for members in taught.values()]
    beside = {_key(members[0], plain_held) for members in taught.values()}
    joined += [members for key, members in plain.items() if key not in beside]
    smoothed = {frozenset(map(id, part)): part for members in joined for part in _by_smoothing(members, held)}
    found = [Group(tuple(part), held, length) for members in smoothed.values() for length, part in by_length(members)]
    for column in reversed(held):
        found = _in_order_of(found, column)
    return found


def _by_smoothing(members: list[Row], held: Sequence[str]) -> list[list[Row]]:
    """Parts of one label smoothing each, where that is held; what looks at no label stands in all of them."""
    values = dict.fromkeys(_plain(row.get(_SMOOTHING)) for row in members if row.get(_SMOOTHING) is not None)
    if _SMOOTHING not in held or len(values) < 2:
        return [members]
    fitting = [{value, _plain(None)} for value in values]
    return [[row for row in members if _plain(row.get(_SMOOTHING)) in both] for both in fitting]


def _in_order_of(found: list[Group], column: str) -> list[Group]:
    keyed = [{"group": group, column: group.sample.get(column)} for group in found]
    return [one["group"] for one in in_order(keyed, column)]


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(_plain(row.get(column)) for column in columns)


def _plain(value: Any) -> str:
    """1 and 1.0 are one setting."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if is_number else str(value)


def by_length(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Runs of equal epochs, or of equal iterations, never both: groups, largest first, until every run with KD is in
    one (without any: every run). One run may be the end of both, as where all the data is kept."""
    equal: dict[str, list[Row]] = {}
    for row in rows:
        epochs, iterations = row.get("epochs"), row.get("iterations")
        if epochs is None or whole_epochs(row):
            equal.setdefault(
                "length unknown" if epochs is None else f"{epochs} epoch{'' if epochs == 1 else 's'}", []
            ).append(row)
        if iterations is not None:
            equal.setdefault(f"{iterations:,} iterations", []).append(row)
    found: list[tuple[str, list[Row]]] = []
    left = {id(row) for row in rows if row["taught"]} or {id(row) for row in rows}
    for length, members in sorted(equal.items(), key=lambda one: (-len(one[1]), "iterations" in one[0])):
        held = {id(row) for row in members}
        if left & held:
            left -= held
            found.append((length, members))
    return found
