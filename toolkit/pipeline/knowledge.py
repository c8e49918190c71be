"""A teacher's knowledge as a bundle holds it: found, checked to belong to these rows and views, and read.

Shapes: k slots, m rows, c classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.errors import FailureError, UsageError
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.cache import CacheRecord, open_cache
from toolkit.pipeline.known_teachers import PRETRAINED, name_of
from toolkit.training.targets import Targets


@dataclass(frozen=True)
class Knowledge:
    """A teacher's logits for a bundle's rows, where they come from, and its own predictions on the test split, or None
    where they are not known."""

    targets: Targets
    record: CacheRecord
    fingerprint: str
    test_classes: np.ndarray | None


def choose_teacher(bundle: Bundle, teacher: str | None) -> str:
    """The teacher whose targets are used: the one named, the data set's default, or the only one there is.

    `teacher` may be a file or a library's, as in cache-teacher. Raises FailureError when the bundle lacks them,
    UsageError when one must be named.
    """
    teacher = None if teacher is None else name_of(teacher)
    held = bundle.teachers()
    if not held or (teacher is not None and teacher not in held):
        found = f"holds targets of {', '.join(held)}" if held else "holds no targets"
        wanted = "" if teacher is None else f", not of {teacher}"
        option = "" if teacher is None else f" --teacher {teacher}"
        raise FailureError(
            f"{bundle.folder}: {found}{wanted}. Run: kdtool cache-teacher --subset {bundle.record.name}{option}, "
            "or kdtool cache-teacher and build-subset again, or train without a teacher: --alpha 0"
        )
    default = PRETRAINED.get(bundle.data.dataset)
    if teacher is None and len(held) > 1 and default not in held:
        raise UsageError(f"{bundle.folder}: holds targets of {', '.join(held)}. Name one with --teacher")
    return teacher or (default if default in held else held[0])


def load_knowledge(
    bundle: Bundle, teacher: str | None = None, match: str = defaults.MATCH, views: int | None = None
) -> Knowledge:
    """The logits to learn from, of the first `views` slots (default: all): checked, and left on disk.

    Raises FailureError when they are not for this bundle's rows and views."""
    name = choose_teacher(bundle, teacher)
    made_by = bundle.targets_command(name)
    with open_cache(bundle.targets_path(name), made_by) as cache:
        plan = bundle.data.plan
        made_by = cache.made_by if cache.record.imported else made_by
        if cache.record.classes != bundle.data.classes:
            raise FailureError(
                f"{cache.path}: targets over {cache.record.classes} classes, the data have {bundle.data.classes}. "
                f"Run: {made_by}"
            )
        found, wanted = cache.record, bundle.data
        made_from = (found.data_fingerprint, found.test_fingerprint)
        same_data = made_from == (wanted.train_fingerprint, wanted.test_fingerprint)
        if not same_data or not np.array_equal(cache.read("rows"), bundle.rows_m):
            raise FailureError(f"{cache.path}: made from other data or other rows than the bundle's. Run: {made_by}")
        if cache.plan != plan:
            raise FailureError(
                f"{cache.path}: cached on views of plan {cache.plan.fingerprint} ({cache.plan.geometry_in_words}), "
                f"the student's is {plan.fingerprint} ({plan.geometry_in_words}). Run: {made_by}"
            )
        slots = cache.slots if views is None else views
        if not 1 <= slots <= cache.slots:
            raise UsageError(f"--views must be 1 to {cache.slots}, which {cache.path} holds, got {slots}")
        cache.check_views(bundle.images().sizes_n2[bundle.indices_m], slots)
        targets = Targets(cache.encoding, cache.encoded(slots), match)
        return Knowledge(targets, cache.record, cache.fingerprint(slots), cache.test_classes())


def subset_loader(
    bundle: str | Path,
    batch_size: int = 128,
    teacher: str | None = None,
    match: str = defaults.MATCH,
    views: int | None = None,
    seed: int = 0,
    workers: int = 2,
) -> Any:
    """A ready loader of a bundle (its folder), for a training loop of your own: each pass over it is one epoch.

    Batches are named tuples: `images_bchw` (b, 3, h, w) float32, normalised, channels last; `labels_b`, `rows_b` (row
    numbers in the packed data) (b,) int64; `logits_bc` (b, c) float32 (a `TopK` where only the largest are cached),
    what the teacher said of exactly these views, or None where the bundle holds no targets; `weights_b` (b,) float32,
    how much each row counts (mean 1 over the subset), or None where the bundle holds no weights. Rows, views and order
    depend only on `seed` and the epoch. `len()` counts the batches of an epoch, `rows` its images; `loader` is the
    FFCV Loader within. Raises FailureError or UsageError for a damaged bundle, or a teacher or match it does not hold.
    """
    from toolkit.training.stream import StreamSource

    for setting, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise UsageError(f"{setting} must be at least 1, got {value}")
    opened = open_bundle(Path(bundle))
    images = opened.images()
    knowledge = None
    if teacher is not None or opened.teachers():
        knowledge = load_knowledge(opened, teacher, match, views)
    data = opened.data
    targets = knowledge.targets if knowledge else None
    shown = (data.plan, data.mean, data.std)
    how = (batch_size, seed)
    return StreamSource(
        images, opened.indices_m, *shown, *how, targets=targets, workers=workers, weights_n=opened.weights_m
    )
