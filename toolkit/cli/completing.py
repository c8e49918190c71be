"""What a shell is offered for an option's value. It is asked at every Tab, so nothing heavy is imported: names that
live in modules which import numpy or torch stand here again, and a test holds the two against each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from toolkit.core.recipes import RECIPES

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

DATASETS = (
    *("fashion-mnist", "mnist", "kmnist", "cifar10", "cifar100", "svhn", "digits"),
    *("glyphs-100", "glyphs-1000", "glyphs-100-large", "imagefolder", "imagenet"),
)
ARCHS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
LIBRARIES = ("torchvision:", "timm:")
METHODS = (
    *("random", "hardest", "easiest", "window", "stratified", "moderate", "herding", "k-center"),
    *("contextual-diversity", "facility-location", "graph-cut", "craig", "grad-match", "glister", "cal", "d2"),
)
SCORES = (
    *("loss", "el2n", "entropy", "margin", "least_confidence", "grand", "disagreement", "forgetting"),
    *("el2n@", "grand@", "aum", "dyn_unc", "tdds", "prototype", "centroid", "knn_distance"),
)
LOSSES = ("kd", "dkd", "dist", "kd-std", "mse", "hard")
MATCHES = ("exact", "nearest", "mean")
ENCODINGS = ("auto", "float16", "float32", "int8", "topk:")
SOURCES = ("auto", "resident", "stream")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "float64")
PRETRAINED = ("fashion-mnist-resnet20", "digits-resnet8")
ALPHAS = ("auto", "search")
FAMILIES = ("resized-crop", "resized-crop-flip")
WRITE_MODES = ("jpg", "raw", "smart")
ON_BAD = ("fail", "skip")


def one_of(names: Iterable[str], *patterns: str) -> Complete:
    """These names, and those that the workspace has: the folders in which a pattern such as
    runs/*/run.json finds a file."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        there = (path.parent.name for pattern in patterns for path in sorted(_workspace(ctx).glob(pattern)))
        return [name for name in dict.fromkeys([*names, *there]) if name.startswith(incomplete)]

    return complete


def _workspace(ctx: click.Context) -> Path:
    """What -w says so far; while a line is completed it may not be there, or make no sense."""
    said = ctx.params.get("workspace")
    return Path(getattr(said, "root", said) or os.environ.get("KDTOOL_WORKSPACE") or "kdtool-work")


# Names that a --limit has added to are no names of data sets
dataset = one_of(DATASETS, "data/*-noise-*/data.json", "data/imagefolder*/data.json")
arch = one_of((*ARCHS, *LIBRARIES))
method = one_of(METHODS)
score = one_of(SCORES)
loss = one_of(LOSSES)
match = one_of(MATCHES)
encoding = one_of(ENCODINGS)
source = one_of(SOURCES)
device = one_of(DEVICES)
precision = one_of(PRECISIONS)
recipe = one_of(RECIPES)
alpha = one_of(ALPHAS)
family = one_of(FAMILIES)
write_mode = one_of(WRITE_MODES)
on_bad = one_of(ON_BAD)
teacher = one_of((*PRETRAINED, *LIBRARIES), "teachers/*/cache*.h5", "teachers/*/teacher.pt")
subset = one_of((), "subsets/*/subset.json")
sweep = one_of((), "sweeps/*/sweep.yaml")
run_or_teacher = one_of((), "runs/*/student.pt", "teachers/*/teacher.pt")
BY_OPTION: dict[str, Complete] = {
    "--dataset": dataset,
    "--arch": arch,
    "--method": method,
    "--score": score,
    "--loss": loss,
    "--match": match,
    "--encoding": encoding,
    "--source": source,
    "--device": device,
    "--precision": precision,
    "--recipe": recipe,
    "--alpha": alpha,
    "--family": family,
    "--write-mode": write_mode,
    "--on-bad": on_bad,
    "--teacher": teacher,
    "--subset": subset,
    "--sweep": sweep,
}


class KnownOption(click.Option):
    """An option whose value a shell completes by the option's name, where BY_OPTION knows it."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        complete = next((BY_OPTION[name] for name in self.opts if name in BY_OPTION), None)
        if complete is None:
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(name) for name in complete(ctx, self, incomplete)]
