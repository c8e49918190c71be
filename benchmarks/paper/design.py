"""What the study of the paper's claims runs: data sets, teachers, and one sweep for each question."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

Options = dict[str, Any]  # of a kdtool command, by their names; a list is given again and again

FRACTIONS, WHOLE = (0.05, 0.1, 0.25, 0.5), 1.0
ALPHAS, WITH_AND_WITHOUT = (0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 1.0)
HARD = {"method": "hardest", "score": "forgetting"}
OF_SIZE = (0.05, 0.5)  # the fractions at which teachers of several sizes are compared
SEEN = {
    0.1: 30,
    0.25: 20,
    0.5: 12,
    1.0: 10,
}  # fractions that teachers saw, and for how many epochs: less data, more of it
SEEN_BY_STUDENT = 0.1
NOISE, OF_NOISE = 0.2, (0.1, 0.25)


@dataclass(frozen=True)
class Data:
    """A data set and how long students and teachers train on it. `teachers` are architectures, the student's own
    first, by size; the second is the teacher wherever not said otherwise."""

    dataset: str
    limit: int | None
    seeds: int
    epochs: int
    iterations: int
    teacher_epochs: int
    student: str = "resnet8"
    teachers: tuple[str, str, str] = ("resnet8", "resnet20", "resnet56")
    recipe: str = "fast"
    steps: tuple[int, float] | None = None  # batch size and learning rate of students, instead of the recipe's

    @property
    def of(self) -> Options:
        return {"dataset": self.dataset, "limit": self.limit}

    @property
    def noisy(self) -> Options:
        return {"dataset": f"{self.dataset}-noise-{NOISE:g}-s0", "limit": self.limit}

    @property
    def all_seeds(self) -> str:
        return f"0..{self.seeds - 1}"


SMALL = {
    "digits": Data("digits", None, 10, 60, 400, 40),
    "fashion-mnist": Data("fashion-mnist", 15_000, 5, 10, 600, 12, steps=(64, 0.05)),
}


def full(dataset: str) -> Data:
    """The paper's own recipe, for a GPU."""
    networks = ("resnet32", "resnet56", "resnet110")
    return Data(dataset, None, 5, 240, 20_000, 240, "resnet32", networks, "paper-cifar")


def named(arch: str, noisy: bool = False) -> str:
    return f"paper-{arch}" + ("-noisy" if noisy else "")


def seen(fraction: float, seed: int) -> str:
    """The teacher of the student's architecture that saw so much of the data."""
    return f"paper-saw-{fraction:g}-s{seed}"


def studies(data: Data) -> dict[str, Options]:
    """A sweep for each question, by its name: what it asks of `kdtool sweep`."""
    student, teacher, _ = data.teachers
    shared = {**data.of, "arch": data.student, "recipe": data.recipe, "seed": data.all_seeds, "views": "all"}
    if data.steps is not None:
        shared |= dict(zip(("batch-size", "lr"), data.steps, strict=True))
    epochs, iterations = {**shared, "epochs": data.epochs}, {**shared, "iterations": data.iterations}
    few = {**epochs, "views": f"epochs:{data.epochs}"}  # of teachers that serve one question
    usual, itself = {"teacher": named(teacher)}, {"teacher": named(student)}
    everywhere = {"frac": [*FRACTIONS, WHOLE]}
    pruned = {"frac": FRACTIONS, "alpha": WITH_AND_WITHOUT}
    others = {"method": ["hardest", "easiest", "moderate"], "score": f"el2n@{early(data)}"}
    noise = {"frac": OF_NOISE, "alpha": WITH_AND_WITHOUT, "teacher": named(teacher, noisy=True)}
    return {
        "alpha": {**epochs, **everywhere, **usual, "alpha": ALPHAS},
        "alpha-self": {**epochs, **everywhere, **itself, "alpha": ALPHAS},
        "forgetting": {**epochs, **pruned, **usual, **HARD},
        "forgetting-self": {**epochs, **pruned, **itself, **HARD},
        "iterations": {**iterations, **everywhere, **usual, "alpha": (0.0, 0.5, 1.0)},
        "iterations-hard": {**iterations, **pruned, **usual, **HARD},
        "methods": {**epochs, **pruned, **usual, **others},
        "sizes": {**few, "frac": OF_SIZE, "alpha": 1.0, "teacher": [named(arch) for arch in data.teachers]},
        **{f"seen-s{seed}": {**few, **of_seen(seed)} for seed in range(data.seeds)},
        "noise": {**few, **data.noisy, **noise},
        "noise-hard": {**few, **data.noisy, **noise, **HARD},
    }


def of_seen(seed: int) -> Options:
    """A student among teachers that saw more and more; nested, so that each saw what the student is shown."""
    teachers = [seen(fraction, seed) for fraction in SEEN]
    return {"frac": SEEN_BY_STUDENT, "alpha": 1.0, "seed": seed, "nested": True, "teacher": teachers}


def cells_of(data: Data, options: Options) -> int:
    """How many students a study has."""
    lists = [value for value in options.values() if isinstance(value, (list, tuple)) and value]
    return prod(map(len, lists)) * (data.seeds if options["seed"] == data.all_seeds else 1)


def early(data: Data) -> int:
    """The epoch of the teacher's training of which EL2N is taken: before it knows all rows."""
    return max(2, data.teacher_epochs // 10)


def words(options: Options) -> list[str]:
    """As they are typed."""
    typed = []
    for name, value in options.items():
        if value is True:
            typed.append(f"--{name}")
        elif value is not None:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                typed += [f"--{name}", f"{one:g}" if isinstance(one, float) else str(one)]
    return typed
