"""Runs as rows of named values: filtered, sorted, averaged over what is left open, and compared pair by pair.

A row maps columns to values; None is what has no meaning in that run, or is not known yet.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from toolkit.core.errors import UsageError, unknown_name
from toolkit.report.statistics import paired_difference
from toolkit.report.tables import table

Row = dict[str, Any]

RESULTS = ("top1", "agreement")
# Settings that follow from it
OF_RECIPE = ("schedule", "momentum", "weight_decay", "batchnorm_decay", "nesterov", "warmup", "milestones")

_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """`column sign value`, such as alpha>=0.5; numbers compare as numbers, and `none` is None."""

    column: str
    sign: str
    value: float | str | None

    @classmethod
    def parse(cls, text: str, option: str) -> Condition:
        """Raises UsageError, naming the `option`, for anything else."""
        found = re.fullmatch(r"\s*([\w-]+?)\s*(>=|<=|!=|==?|>|<)\s*(.*?)\s*", text)
        if found is None or not found[3]:
            raise UsageError(f"{option} '{text}': expected a column, a sign and a value, such as alpha=1 or alpha>=0.5")
        sign = "=" if found[2] == "==" else found[2]
        return cls(found[1].replace("-", "_"), sign, _value(found[3]))

    def holds(self, row: Row) -> bool:
        """Never of a run of which the column is not known, such as one that has not ended."""
        if self.column not in row:
            return False
        found = row[self.column]
        both = _number(found) and _number(self.value)
        ours, theirs = (found, self.value) if both else (_word(found), _word(self.value))
        if self.sign not in ("=", "!=") and not (_number(ours) and _number(theirs)):
            return False  # words and None have no order
        return _SIGNS[self.sign](ours, theirs)


def _value(text: str) -> float | str | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        return text


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _word(value: Any) -> str:
    return str(value).lower()


def check_columns(names: Iterable[str], rows: Sequence[Row], option: str) -> None:
    """Raises UsageError, naming the `option`, for a column that no row has."""
    known = list(dict.fromkeys(column for row in rows for column in row))
    for name in names:
        if known and name not in known:
            raise UsageError(f"{option}: {unknown_name('column', name, known)}")


def ordered_by(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Sorted by the first column, where that is the same by the second, and so on."""
    found = list(rows)
    for column in reversed(columns):
        found = in_order(found, column)
    return found


def in_order(rows: Sequence[Row], column: str, downwards: bool = False) -> list[Row]:
    """Sorted by one column, what is None last either way."""
    there = [row for row in rows if row.get(column) is not None]
    missing = [row for row in rows if row.get(column) is None]
    return sorted(there, key=lambda row: _rank(row[column]), reverse=downwards) + missing


def _rank(value: Any) -> tuple[Any, ...]:
    return (0, value, "") if _number(value) else (1, 0, str(value))


def differing(rows: Sequence[Row], columns: Iterable[str]) -> list[str]:
    """Those of `columns` in which the rows are not all alike, among those where it has a meaning."""
    known = {column: {str(row[column]) for row in rows if row.get(column) is not None} for column in columns}
    return [column for column, values in known.items() if len(values) > 1]


def averages(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """A row for each group that agrees in `by`: n, and mean and sample standard deviation (None for one value) of each
    of RESULTS, as `top1` and `top1_sd`; in the groups' own order."""
    return [{**dict(zip(by, values, strict=True)), **_spread(members)} for values, members in groups(rows, by).items()]


def groups(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(column) for column in by), []).append(row)
    return found


def _spread(members: Sequence[Row]) -> Row:
    said: Row = {"n": sum(row.get("top1") is not None for row in members)}
    for result in RESULTS:
        values = [row[result] for row in members if row.get(result) is not None]
        said[result] = mean(values) if values else None
        said[f"{result}_sd"] = stdev(values) if len(values) > 1 else None
    return said


def subset_seeds(rows: Sequence[Row], columns: Sequence[str]) -> list[Any]:
    """Of each run its subset's seed, or None where that is the run's own as in most runs that agree in `columns`: then
    it says nothing more. A run alone is taken as most of all rows are."""
    own = [row.get("subset_seed") in (None, row.get("seed")) for row in rows]
    keys = [repr([row.get(column) for column in columns]) for row in rows]
    alike: dict[str, list[bool]] = {}
    for key, one in zip(keys, own, strict=True):
        alike.setdefault(key, []).append(one)
    found = []
    for row, one, key in zip(rows, own, keys, strict=True):
        judged = alike[key] if len(alike[key]) > 1 else own
        found.append(None if one and 2 * sum(judged) > len(judged) else row.get("subset_seed"))
    return found


def compared(
    rows: Sequence[Row],
    by: Sequence[str],
    against: Sequence[Condition],
    settings: Sequence[str],
    partners: Sequence[Row] | None = None,
) -> list[Row]:
    """`averages`, and each group's mean difference in top1 from those of `partners` (default: the rows themselves) that
    `against` holds for: `difference`, with its 95 % interval `low` and `high` where there are two pairs or more, and
    `pairs`, how many.

    A run's partner agrees with it in all `settings` that `against` does not name and that have a meaning in both, and
    was trained for as many epochs, or steps. Raises UsageError where several such partners differ from each other.
    """
    theirs = [row for row in (rows if partners is None else partners) if all(one.holds(row) for one in against)]
    named = {condition.column for condition in against}
    # what most tells them apart is looked at first: there may be thousands to find one partner among
    apart = {column: len({str(row.get(column)) for row in theirs}) for column in settings if column not in named}
    shared = sorted(apart, key=lambda column: -apart[column])
    compared_rows = []
    for average, members in zip(averages(rows, by), groups(rows, by).values(), strict=True):
        ours = [row for row in members if not any(row is one for one in theirs)]
        pairs = [(row, partner) for row in ours if (partner := _partner(row, theirs, shared)) is not None]
        compared_rows.append({**average, **_difference(pairs)})
    return compared_rows


def _partner(row: Row, theirs: Sequence[Row], shared: Sequence[str]) -> Row | None:
    found = [one for one in theirs if all(_same(row, one, column) for column in shared) and _as_long(row, one)]
    if not found:
        return None
    # of those that agree in epochs or in steps, those that agree in both
    found = [one for one in found if _same(row, one, "epochs") and _same(row, one, "iterations")] or found
    differ = differing(found, shared)
    if differ:
        raise UsageError(
            f"--against: {row.get('name')} has {len(found)} runs to be compared with, which differ in "
            f"{', '.join(differ)}. Name one of them too: --against {differ[0]}={found[0].get(differ[0])}"
        )
    return max(found, key=lambda one: str(one.get("created")))


def _same(row: Row, other: Row, column: str) -> bool:
    ours, theirs = row.get(column), other.get(column)
    return ours is None or theirs is None or ours == theirs


def _as_long(row: Row, other: Row) -> bool:
    """Half the rows are half the steps of an epoch: one of the two is what was asked for. A run that ended within an
    epoch was asked for its steps."""
    if _same(row, other, "iterations"):
        return True
    return _same(row, other, "epochs") and whole_epochs(row) and whole_epochs(other)


def whole_epochs(row: Row) -> bool:
    """Whether a run did not end within an epoch, from its rows and batch size; where these are not known, whether its
    steps are as many in each epoch."""
    epochs, steps, rows, batch = (row.get(column) for column in ("epochs", "iterations", "rows", "batch_size"))
    if not epochs or steps is None:
        return True
    return steps == epochs * -(-rows // batch) if rows and batch else steps % epochs == 0


def _difference(pairs: Sequence[tuple[Row, Row]]) -> Row:
    """Runs with the same partner count as one, by their mean: what that partner owes to chance is in all of them."""
    partners = {id(partner): partner["top1"] for _, partner in pairs}
    of_partner = {one: [row["top1"] for row, partner in pairs if id(partner) == one] for one in partners}
    ours, theirs = [mean(values) for values in of_partner.values()], list(partners.values())
    said: Row = {"difference": None, "low": None, "high": None, "pairs": len(partners)}
    if len(partners) == 1:
        return {**said, "difference": ours[0] - theirs[0]}
    if partners:
        found = paired_difference(ours, theirs)
        return {**said, "difference": found.mean, "low": found.low, "high": found.high}
    return said


def shown(value: Any, column: str = "") -> str:
    """A value in a table's cell."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if column in RESULTS else f"{value:.6g}"
    return str(value).lower() if isinstance(value, bool) else str(value)  # as --where takes it


def average_cells(row: Row, by: Sequence[str]) -> list[str]:
    """A line under `average_header`."""
    cells = [*(shown(row[column]) for column in by), *(_with_sd(row, result) for result in RESULTS), str(row["n"])]
    return [*cells, _in_words(row), str(row["pairs"] or "")] if "pairs" in row else cells


def average_header(by: Sequence[str], against: Sequence[Condition] = ()) -> list[str]:
    header = [*by, *RESULTS, "n"]
    if not against:
        return header
    named = ", ".join(f"{one.column}{one.sign}{shown(one.value) or 'none'}" for one in against)
    return [*header, f"top1 against {named} [95 %]", "pairs"]


def _with_sd(row: Row, result: str) -> str:
    if row[result] is None:
        return ""
    return f"{row[result]:.2f}" + ("" if row[f"{result}_sd"] is None else f" ± {row[f'{result}_sd']:.2f}")


def _in_words(row: Row) -> str:
    if row["difference"] is None:
        return ""
    interval = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['difference']:+.2f}{interval}"


def sweep_table(lines: Sequence[Row], varied: Sequence[str]) -> str:
    """A sweep's lines, averaged over its seeds, by the other axes that differ."""
    by = [axis for axis in varied if axis != "seed"]
    rows = [{**line["cell"], **dict.fromkeys(RESULTS), **line.get("result", {}), **line["cell"]} for line in lines]
    header, cells = average_header(by), [average_cells(row, by) for row in averages(rows, by)]
    failed = [
        sum(line["status"] == "failed" for line in members)
        for members in groups([{**line["cell"], **line} for line in lines], by).values()
    ]
    if any(failed):
        header, cells = [*header, "failed"], [[*row, str(count)] for row, count in zip(cells, failed, strict=True)]
    return table(header, cells)
