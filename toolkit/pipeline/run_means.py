"""Runs averaged over seeds, and compared with their partners: what must be equal for two runs to be a pair."""

from __future__ import annotations

from toolkit.pipeline.run_rows import OF_SUBSET, SETTINGS
from toolkit.report.runs import (
    OF_RECIPE,
    RESULTS,
    Condition,
    Row,
    averages,
    compared,
    differing,
    groups,
    ordered_by,
    shown,
    subset_seeds,
    whole_epochs,
)

_ALPHAS = ("alpha", "alpha_asked")  # one setting: what was asked for, which may be a word, and the number it came to
# What a run and its partner must agree in: also what follows from the recipe. How long they train, see `compared`.
_PAIRED = [
    column for column in (*SETTINGS, "teacher_fingerprint", *OF_RECIPE) if column not in ("epochs", "alpha_asked")
]
_BUT_SEEDS = [column for column in (*_PAIRED, "alpha_asked", "epochs", "iterations") if not column.endswith("seed")]
_SAME = (*_PAIRED, "alpha_asked", "epochs", "iterations", "rows_fingerprint", "targets_fingerprint", "data_fingerprint")


def means(
    found: list[Row],
    conditions: list[Condition],
    baseline: list[Condition],
    named: list[str] | None = None,
    option: str = "--against ",
) -> tuple[list[str], list[Row], list[str]]:
    """The columns averaged by (default: the settings that differ), the averages over those finished runs of which all
    `conditions` hold, in the columns' order, and what is to be said of them; compared with the runs of which `baseline`
    holds, where that says anything; a note of that begins with `option`. A run that was done twice counts once. Raises
    UsageError."""
    found, notes = once([dict(row) for row in found])
    done = [row for row in found if row["state"] == "done" and all(one.holds(row) for one in conditions)]
    by = list(named or [])
    if named is None:  # of a subset's seed what says more than the run's own
        named = _open(done)
        by = ["_subset_seed" if column == "subset_seed" else column for column in named]
        for row, seed in zip(done, subset_seeds(done, _BUT_SEEDS), strict=True):
            row["_subset_seed"] = seed
    if not baseline:
        return named, _renamed(ordered_by(averages(done, by), by)), notes
    partners, settings = _partners(found, conditions, baseline)
    averaged = _renamed(ordered_by(compared(done, by, baseline, settings, partners), by))
    said = " and ".join(f"{one.column}{one.sign}{shown(one.value) or 'none'}" for one in baseline)
    return named, averaged, [*notes, *_no_pairs(averaged, f"{option}{said}")]


def _renamed(averaged: list[Row]) -> list[Row]:
    return [{column.removeprefix("_"): value for column, value in row.items()} for row in averaged]


def once(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without runs that are the same as a newer one in all settings and the seed, such as 3 epochs and as many
    steps under another name; and what is to be said of that. They are no two repeats: chance was the same."""
    newest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: str(row.get("created"))):
        key = repr([row.get(column) for column in _SAME]) if row["state"] == "done" else row["name"]
        newest[key] = row
    kept = {id(row) for row in newest.values()}
    left = [str(row["name"]) for row in rows if id(row) not in kept]
    several = f"{len(left)} runs ({left[0]}, …) are" if left[1:] else f"the run {left[0]} is" if left else ""
    notes = [f"{several} the same as another in all settings and the seed: such count once"] if left else []
    return [row for row in rows if id(row) in kept], notes


def _partners(found: list[Row], conditions: list[Condition], baseline: list[Condition]) -> tuple[list[Row], list[str]]:
    """The runs among which partners are looked for, and the settings that they must share: neither is bound by what
    `baseline` names. What has no meaning in a partner does not rule it out."""
    freed = {one.column for one in baseline}
    freed |= set(_ALPHAS) if freed & set(_ALPHAS) else set()
    kept = [one for one in conditions if one.column not in freed]
    done = [row for row in found if row["state"] == "done"]
    partners = [row for row in done if all(one.holds(row) or row.get(one.column) is None for one in kept)]
    # one name may have come to stand for other rows; where the subset is what is compared, they must differ
    same_rows = [] if freed & {"dataset", *OF_SUBSET} else ["rows_fingerprint"]
    return partners, [*(column for column in _PAIRED if column not in freed), *same_rows]


def _no_pairs(averaged: list[Row], said: str) -> list[str]:
    if not averaged or any(row["pairs"] for row in averaged):
        return []
    return [f"{said}: nothing to compare: no finished run with it agrees with one without it in all other settings"]


def _open(done: list[Row]) -> list[str]:
    """The settings that are not the same in all runs, but for the seed. What alpha was asked for counts where it was
    by a word: then several numbers are one setting. Of a run that ended within an epoch the iterations count too."""
    named = [column for column in differing_settings(done) if column not in ("seed", *RESULTS)]
    by_steps = _other_steps(done, named) or not all(map(whole_epochs, done))
    return [*named, *(["iterations"] if by_steps else [])]


def _other_steps(done: list[Row], named: list[str]) -> bool:
    """Whether runs that agree in the columns `named` were trained for different numbers of steps: some were stopped
    within an epoch."""
    return any(differing(members, ["iterations"]) for members in groups(done, named).values())


def differing_settings(done: list[Row]) -> list[str]:
    """The settings and results that are not the same in all runs; of the subset's seed only where it says more."""
    of_its_own = any(row["subset_seed"] not in (None, row["seed"]) for row in done)
    by_word = any(isinstance(row["alpha_asked"], str) for row in done)
    left_out = {"subset_seed": not of_its_own, "alpha_asked": not by_word}
    return [column for column in differing(done, [*SETTINGS, *RESULTS]) if not left_out.get(column)]
