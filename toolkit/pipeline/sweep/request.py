"""What `kdtool sweep` is asked for: values of each axis, and settings that all cells share."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from toolkit.core import defaults
from toolkit.core.errors import UsageError
from toolkit.core.hashing import checked_seed, fingerprint
from toolkit.core.recipes import check_one_length, resolve_recipe
from toolkit.distill.losses import LOSSES
from toolkit.distill.settings import DistillSettings
from toolkit.formats.dataset import data_key
from toolkit.pipeline.subset_request import SubsetRequest, sees_network
from toolkit.selection.methods import METHODS

AXES = ("frac", "method", "alpha", "temperature", "loss", "match", "arch", "teacher", "seed")


@dataclass(frozen=True)
class Cell:
    """One student of a sweep: a value of each axis. Teacher None is the data set's default."""

    frac: float
    method: str
    alpha: float | str
    temperature: float
    loss: str
    match: str
    arch: str
    teacher: str | None
    seed: int

    @property
    def taught(self) -> bool:
        """Whether it learns from a teacher at all."""
        return self.alpha != 0

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from a teacher, or its rows are chosen by what one left."""
        return self.taught or bool(METHODS[self.method].needs)


@dataclass(frozen=True)
class Sweep:
    """Values of each axis, and what all cells share. Every combination of the axes is a cell; the last one's values
    change fastest. A cell's seed decides subset, initialisation and order, or with `subset_seed` all but the subset.

    `views` is cache-teacher's: so many slots are cached, and learned from; None takes a cache as it is. `score`,
    `center`, `drop_hardest`, `weights` and `beta` reach the methods and losses that know them. Raises UsageError for
    a value that cannot be, and for a setting that no cell has a use for.
    """

    frac: tuple[float, ...]
    method: tuple[str, ...] = (defaults.METHOD,)
    alpha: tuple[float | str, ...] = (defaults.ALPHA,)
    temperature: tuple[float, ...] = (defaults.TEMPERATURE,)
    loss: tuple[str, ...] = (defaults.LOSS,)
    match: tuple[str, ...] = (defaults.MATCH,)
    arch: tuple[str, ...] = (defaults.STUDENT_ARCH,)
    teacher: tuple[str | None, ...] = (None,)
    seed: tuple[int, ...] = (defaults.SEED,)
    dataset: str = defaults.DATASET
    limit: int | None = None
    score: str | None = None
    center: float | None = None
    drop_hardest: float | None = None
    balance: bool = defaults.BALANCE
    nested: bool = False
    min_per_class: int = defaults.MIN_PER_CLASS
    subset_seed: int | None = None
    views: str | None = None
    weights: bool = False
    beta: float | None = None
    recipe: str = defaults.RECIPE
    epochs: int | None = None
    iterations: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    label_smoothing: float | None = None
    ema: float | None = None
    width: int = defaults.WIDTH
    compile: bool = False
    device: str = defaults.DEVICE
    precision: str = defaults.PRECISION

    def __post_init__(self) -> None:
        for axis in AXES:
            if not getattr(self, axis):
                raise UsageError(f"--{axis}: a sweep needs at least one value")
            object.__setattr__(self, axis, tuple(dict.fromkeys(getattr(self, axis))))
        for fraction in self.frac:
            if not (math.isfinite(fraction) and 0 < fraction <= 1):
                raise UsageError(f"--frac must be above 0 and at most 1, got {fraction}")
        for seed in [*self.seed, *([] if self.subset_seed is None else [self.subset_seed])]:
            checked_seed(seed)
        self.subsets_of(self.method)
        for cell in self.cells:
            settled = DistillSettings(**self.distilled(cell))
            if self.weights and cell.taught and METHODS[cell.method].weighted:
                settled.refuse_weights()
        self._need_used()
        resolve_recipe(self.recipe, self.epochs, self.batch_size, self.lr, self.label_smoothing, self.ema)
        check_one_length(self.epochs, self.iterations)
        if self.views is not None and not re.fullmatch(r"all|(epochs:)?0*[1-9][0-9]*", self.views):
            raise UsageError(f"--views must be a number, 'all', or 'epochs:E', got '{self.views}'")

    def _need_used(self) -> None:
        weighing, weighed = [name for name, method in METHODS.items() if method.weighted], set(self.method)
        if self.weights and not weighed & set(weighing):
            raise UsageError(
                f"--weights has no meaning for --method {', '.join(self.method)}: only {', '.join(weighing)} "
                "give them. Leave it out"
            )
        with_beta = [name for name in LOSSES if knows_beta(name)]
        if self.beta is not None and not set(self.loss) & set(with_beta):
            raise UsageError(
                f"--beta has no meaning for --loss {', '.join(self.loss)}. Leave it out, or use it with --loss "
                f"{' or '.join(with_beta)}"
            )
        if self.label_smoothing is not None and set(self.alpha) == {1.0}:
            raise UsageError(
                f"--label-smoothing {self.label_smoothing:g} has no meaning for --alpha 1, which never looks at the "
                "labels. Leave it out, or use it with an --alpha below 1"
            )

    @cached_property
    def cells(self) -> list[Cell]:
        return [Cell(*values) for values in product(*(getattr(self, axis) for axis in AXES))]

    def essence(self, cell: Cell) -> Cell:
        """The same cell for all that are the same run, as far as that is known before anything is made: what has no
        meaning in it is put to one value."""
        settled = DistillSettings(**self.distilled(cell)).resolved(cell.frac)
        plain = cell if cell.taught else replace(cell, match="exact")
        temperature = 1.0 if settled.temperature is None else settled.temperature
        teacher = cell.teacher if cell.needs_teacher else None
        return replace(plain, alpha=settled.alpha, temperature=temperature, loss=settled.loss, teacher=teacher)

    def distilled(self, cell: Cell) -> dict[str, Any]:
        """What a cell asks of DistillSettings."""
        said = {name: getattr(cell, name) for name in ("alpha", "temperature", "match", "loss")}
        beta = self.beta if knows_beta(cell.loss) and cell.taught else None
        return {**said, "iterations": self.iterations, **({} if beta is None else {"beta": beta})}

    def trained(self, cell: Cell, subset: str, teacher: str | None, slots: int | None) -> dict[str, Any]:
        """What a cell asks of distill, with its subset's and teacher's names, and how many cached views are used."""
        shared = ("recipe", "epochs", "batch_size", "lr", "label_smoothing", "ema", "width")
        return {
            **self.distilled(cell),
            **{name: getattr(self, name) for name in shared},
            "subset": subset,
            "teacher": teacher if cell.taught else None,
            "arch": cell.arch,
            "seed": cell.seed,
            "views": slots if cell.taught else None,
            "weights": self.weights and METHODS[cell.method].weighted,
        }

    def subsets_of(self, methods: tuple[str, ...], teacher: str | None = None, seed: int = 0) -> dict[str, Any]:
        """What subsets by these `methods` are asked for: keywords of `build_subsets`, checked."""
        knows = {
            "score": any("scores" in METHODS[name].needs for name in methods if name in METHODS),
            **{
                option: any(option in METHODS[name].settings for name in methods if name in METHODS)
                for option in ("center", "drop_hardest")
            },
        }
        every = set(methods) == set(self.method)  # then one that no method knows is the user's mistake
        said = {name: getattr(self, name) for name, known in knows.items() if known or every}
        shared = {name: getattr(self, name) for name in ("balance", "nested", "min_per_class")}
        asked = {"methods": methods, "teacher": teacher, "seed": seed, "index_only": True, **shared, **said}
        SubsetRequest(**asked)
        on_device = any(sees_network(name) for name in methods)
        return {**asked, "device": self.device if on_device else None}

    def seed_of_subset(self, cell: Cell) -> int:
        return cell.seed if self.subset_seed is None else self.subset_seed

    @property
    def varied(self) -> list[str]:
        """The axes with more than one value."""
        return [axis for axis in AXES if len(getattr(self, axis)) > 1]

    def to_record(self) -> dict[str, Any]:
        """By the names of the options, as a YAML file would say it; only what is not the default."""
        usual = {field.name: field.default for field in fields(self)}
        said = {name: value for name, value in asdict(self).items() if value != usual[name]}
        return {name.replace("_", "-"): list(value) if name in AXES else value for name, value in said.items()}

    @property
    def shared(self) -> dict[str, Any]:
        """What all cells share, by the names of the options."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items() if name not in AXES}

    @property
    def default_name(self) -> str:
        text = repr(sorted(self.to_record().items()))
        return f"{data_key(self.dataset, self.limit).replace(':', '-')}-{fingerprint(text)[:8]}"


def knows_beta(loss: str) -> bool:
    return loss in LOSSES and LOSSES[loss].beta is not None


def label_of(cell: Cell, varied: list[str]) -> str:
    """A cell in words: the axes that differ within its sweep."""
    shown = {axis: value for axis, value in zip(AXES, astuple(cell), strict=True) if axis in varied}
    words = {axis: f"{value:g}" if isinstance(value, float) else value for axis, value in shown.items()}
    return ", ".join(f"{axis} {'default' if word is None else word}" for axis, word in words.items()) or "the student"
