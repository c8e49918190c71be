"""kdtool show: the hardest, the easiest and some random samples by a score, and how the score is spread.

Shapes: n rows of the data, r rows drawn, t tiles, h and w height and width.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_file
from toolkit.core.hashing import checked_seed, rng_for
from toolkit.core.progress import Progress, silent
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import PackedData
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import bundle_and_data
from toolkit.pipeline.found_scores import find_score
from toolkit.pipeline.known_teachers import PRETRAINED
from toolkit.pipeline.pictures import check_out, is_png, picture_path
from toolkit.pipeline.score_sources import open_cache_of, options_of, teacher_if_any
from toolkit.report.charts import histogram, save_png
from toolkit.report.montage import class_label
from toolkit.report.sheets import GROUPS, Group, SheetLayout, Tile, broken_into_lines, pick_groups, sheet

_TILE, _MOST, _SALT = 84, 8192, 0x5EE


@dataclass(frozen=True)
class _Samples:
    """What is known of every row: its score, label, and the teacher's guess (None without its cache)."""

    data: PackedData
    scores_n: np.ndarray
    labels_n: np.ndarray
    guesses_n: np.ndarray | None

    def tile(self, row: int) -> Tile:
        names, label = self.data.record.class_names, int(self.labels_n[row])
        if self.guesses_n is None:
            return Tile(row, float(self.scores_n[row]), class_label(names, label))
        guess = int(self.guesses_n[row])
        return Tile(
            row, float(self.scores_n[row]), class_label(names, label), class_label(names, guess), guess == label
        )


def show(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    out: Place | None = None,
    score: str = defaults.SCORE,
    teacher: str | None = None,
    subset: str | None = None,
    count: int = defaults.SHOWN_SAMPLES,
    per_class: bool = False,
    seed: int = defaults.SEED,
    dataset: str | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draws contact sheets of the `count` hardest, easiest and random training rows, and a histogram of the score.

    Into a folder, a sheet for each group and histogram.png; into `out` that ends in .png, one sheet of all groups, and
    the histogram beside it as <name>-histogram.png. By default it is a folder in the workspace's pictures/, named after
    what is shown. `per_class` draws `count` of each class, a line for each. With `subset` the histogram sets the rows
    kept against those dropped; the sheets are of all rows of its data, which are those of `dataset` where that is
    given. Chance, drawn from `seed`, decides between equal scores. Raises UsageError or
    FailureError.
    """
    workspace, data_dir, out = Workspace.at(workspace), as_path(data_dir), as_path(out)
    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    checked_seed(seed)
    if out is not None:
        check_out(workspace, out, folder_too=True)
    if subset is not None:
        _check_same_data(workspace, subset, dataset, limit)
    bundle, data = bundle_and_data(workspace, subset, dataset or defaults.DATASET, data_dir, limit, progress)
    scores_n, described = find_score(workspace, data, teacher, score)
    if not np.isfinite(scores_n).all():
        missing = np.flatnonzero(~np.isfinite(scores_n))
        raise FailureError(f"{described}: {len(missing):,} rows, such as {missing[0]}, have none. Name another --score")
    samples = _Samples(data, scores_n, data.split("train").labels_n, _guesses(workspace, data, teacher))
    picked = {group: rows.tolist() for group, rows in _picked(samples, count, per_class, seed).items()}
    kept_n = None if bundle is None else np.isin(np.arange(len(scores_n)), bundle.rows_of(data.record))
    folder = _default_folder(workspace, data, score, teacher, bundle, per_class) if out is None else out
    sheets = _sheets(samples, picked, described, folder, per_class)
    chart_path = _beside(folder, "histogram")
    of = "all training rows" if bundle is None else f"kept and dropped by {bundle.record.name}"
    for path, layout in sheets.items():
        _write_sheet(path, samples, layout)
    with whole_file(chart_path) as temporary:
        save_png(histogram(scores_n, kept_n, described, f"{data.record.key}\n{of}"), temporary)
    return {
        "path": str(folder),
        "files": [str(path) for path in (*sheets, chart_path)],
        "dataset": data.record.key,
        "score": described,
        "teacher_guesses": samples.guesses_n is not None,
        "rows": len(scores_n),
        "kept": None if kept_n is None else int(kept_n.sum()),
        "row_numbers": picked,
    }


def _check_same_data(workspace: Workspace, subset: str, dataset: str | None, limit: int | None) -> None:
    """Raises UsageError for a data set or a limit that is not the subset's own."""
    of = open_bundle(workspace.subset(subset)).data
    if (dataset or of.dataset) != of.dataset or (limit is not None and limit != of.limit):
        asked = f"--dataset {dataset or of.dataset}" + ("" if limit is None else f" --limit {limit}")
        raise UsageError(f"{asked}: the subset {subset} is of {options_of(of)}. Leave them out")


def _default_folder(
    workspace: Workspace, data: PackedData, score: str, teacher: str | None, bundle: Bundle | None, per_class: bool
) -> Path:
    """Named after all that decides what is shown, as far as it is not the default."""
    whose = teacher_if_any(workspace, teacher, data.record)
    of = [] if whose is None or whose == PRETRAINED.get(data.record.dataset) else ["of", whose]
    kept = [] if bundle is None else ["kept-by", bundle.record.name]
    return picture_path(workspace, data.record.key, score, *of, *kept, *(["per-class"] if per_class else []))


def _guesses(workspace: Workspace, data: PackedData, teacher: str | None) -> np.ndarray | None:
    """What the teacher takes each row's canonical view for, (n,) int64; None where there is no cache of it.

    Raises FailureError for a cache that is damaged or of other data."""
    name = teacher_if_any(workspace, teacher, data.record)
    if name is None or not workspace.cache(name, data.record.limit).is_file():
        return None
    with ExitStack() as stack:
        cache = open_cache_of(stack, workspace, data, name)
        return cache.encoding.top_class(cache.encoded_rows(0, np.arange(len(cache))))


def _picked(samples: _Samples, count: int, per_class: bool, seed: int) -> dict[str, np.ndarray]:
    """The rows of each group, (r,): of all, or of each class in turn."""
    rng = rng_for(seed, _SALT)
    if not per_class:
        return pick_groups(samples.scores_n, count, rng)
    rows_of = [np.flatnonzero(samples.labels_n == label) for label in range(samples.data.record.classes)]
    picks = [(rows, pick_groups(samples.scores_n[rows], count, rng)) for rows in rows_of if len(rows)]
    return {group: np.concatenate([rows[pick[group]] for rows, pick in picks]) for group in GROUPS}


def _sheets(
    samples: _Samples, picked: dict[str, list[int]], described: str, out: Path, per_class: bool
) -> dict[Path, SheetLayout]:
    """What is drawn into which file. Raises UsageError for a picture that would be too large."""
    plan = samples.data.record.plan
    scale = max(1, round(_TILE / max(plan.height, plan.width)))
    groups = {}
    for name, rows in picked.items():
        tiles = [samples.tile(row) for row in rows]
        lines = _by_class(tiles, samples.labels_n) if per_class else broken_into_lines(tiles, plan.width * scale)
        by = "with" if name == "random" else "by"
        groups[name] = Group(f"{name.capitalize()} {by} {described}, {samples.data.record.key}", lines)
    if is_png(out):
        sheets = {out: SheetLayout(tuple(groups.values()), plan.height, plan.width, scale)}
    else:
        sheets = {
            _beside(out, name): SheetLayout((group,), plan.height, plan.width, scale) for name, group in groups.items()
        }
    for path, layout in sheets.items():
        height, width = layout.size
        if max(height, width) > _MOST:
            raise UsageError(
                f"{path} would be {width:,} × {height:,} pixels, more than {_MOST:,} a side: lower --count"
                f"{', or leave out --per-class' if per_class else ''}"
            )
    return sheets


def _by_class(tiles: list[Tile], labels_n: np.ndarray) -> tuple[tuple[Tile, ...], ...]:
    """A line for each class."""
    labels = [int(labels_n[tile.row]) for tile in tiles]
    return tuple(
        tuple(tile for tile, found in zip(tiles, labels, strict=True) if found == label)
        for label in sorted(set(labels))
    )


def _beside(out: Path, name: str) -> Path:
    """The file of this name in the folder `out`, or beside the picture `out`."""
    return out.with_name(f"{out.stem}-{name}.png") if is_png(out) else out / f"{name}.png"


def _write_sheet(path: Path, samples: _Samples, layout: SheetLayout) -> None:
    from toolkit.pipeline.views import views_of  # torch

    rows_t = np.array([tile.row for tile, *_ in layout.places()], dtype=np.int64)
    rows_r, place_t = np.unique(rows_t, return_inverse=True)
    data = samples.data
    samples_rhw3 = views_of(data.split("train"), data.record.plan, rows_r, 1)[:, 0]
    with whole_file(path) as temporary:
        Image.fromarray(sheet(samples_rhw3[place_t], layout)).save(temporary, format="PNG")
