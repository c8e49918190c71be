"""kdtool compare: rank correlations of scores, and overlaps of subsets. Shapes: n rows, k scores or subsets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_file
from toolkit.core.progress import Progress, silent
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import PackedData
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.score import find_score, known_scores
from toolkit.report.charts import HeatMap, heat_maps, save_png
from toolkit.report.comparing import Overlaps, overlaps, rank_correlations

_MOST = 48  # names in a heat map


def compare(
    workspace: Workspace,
    out: Path | None = None,
    scores: Sequence[str] = (),
    subsets: Sequence[str] = (),
    teachers: Sequence[str] = (),
    dataset: str = "fashion-mnist",
    data_dir: Path | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compares the scores (of each of the teachers named, by default the data set's) and the subsets named; with none
    named, every subset of the data set and every score of the teachers named, by default of all there are.

    Draws heat maps into the PNG file `out` (default: in the workspace's pictures/), and returns the same numbers:
    Spearman's ρ of every two scores (None where a score is the same for all rows), of every two subsets the rows in
    common, their share of the smaller one and of the union, and what random subsets of these sizes would share on
    average. A subset of other data is refused where it is named and else skipped, as `skipped` tells. Raises
    UsageError or FailureError.
    """
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    path = workspace.root / "pictures" / f"{data.record.key}-compare.png" if out is None else out
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out {path}: the picture is a PNG file. Give it a name that ends in .png")
    everything = not scores and not subsets
    wanted: list[tuple[str | None, str]]
    if everything:
        wanted, skipped_teachers = _all_scores(workspace, data, teachers)
        found, skipped = _all_subsets(workspace, data)
        skipped = {**skipped_teachers, **skipped}
    else:
        asked: Sequence[str | None] = teachers or [None]
        wanted = [(teacher, score) for teacher in dict.fromkeys(asked) for score in dict.fromkeys(scores)]
        found, skipped = _named_subsets(workspace, data, subsets), {}
    if len(found) < 2 and len(wanted) < 2:
        raise UsageError(
            f"{len(wanted)} scores and {len(found)} subsets of {data.record.key} to compare: it takes two of either. "
            f"Run kdtool cache-teacher or kdtool build-subset --dataset {dataset}, or name more of them"
        )
    _check_size("score", len(wanted))
    _check_size("subset", len(found))
    scored = _scored(workspace, data, wanted)
    rho_kk = rank_correlations(np.stack(list(scored.values()))) if len(scored) > 1 else None
    shared = overlaps([bundle.rows_m for bundle in found.values()], data.record.train_rows) if len(found) > 1 else None
    with whole_file(path) as temporary:
        save_png(heat_maps(_maps(data.record.key, list(scored), rho_kk, list(found), shared)), temporary)
    return {
        "path": str(path),
        "dataset": data.record.key,
        "rows": data.record.train_rows,
        "scores": list(scored),
        "spearman": None if rho_kk is None else _numbers(rho_kk),
        "subsets": {one: bundle.record.rows for one, bundle in found.items()},
        "common_rows": None if shared is None else shared.common.tolist(),
        "overlap": None if shared is None else _numbers(shared.share),
        "overlap_by_chance": None if shared is None else _numbers(shared.share_by_chance),
        "jaccard": None if shared is None else _numbers(shared.jaccard),
        "jaccard_by_chance": None if shared is None else _numbers(shared.jaccard_by_chance),
        "skipped": skipped,
    }


def _all_scores(
    workspace: Workspace, data: PackedData, teachers: Sequence[str]
) -> tuple[list[tuple[str | None, str]], dict[str, str]]:
    """(teacher, score) of every score of these data, each once; and why teachers that nobody named have none."""
    names: list[str | None] = list(dict.fromkeys(teachers))
    if not teachers:
        names = [None, *sorted(path.name for path in workspace.root.glob("teachers/*") if path.is_dir())]
    by_words: dict[str, tuple[str | None, str]] = {}
    skipped = {}
    for teacher in names:
        try:
            for score, words in known_scores(workspace, data, teacher).items():
                by_words.setdefault(words, (teacher, score))
        except FailureError as error:
            if teachers or teacher is None:
                raise
            skipped[f"teacher {teacher}"] = str(error).split(". Run: ")[0]
    return list(by_words.values()), skipped


def _scored(workspace: Workspace, data: PackedData, wanted: list[tuple[str | None, str]]) -> dict[str, np.ndarray]:
    """The scores by what they are called: their teachers are named where there are several."""
    described = {}
    for teacher, score in wanted:
        scores_n, words = find_score(workspace, data, teacher, score)
        if np.isnan(scores_n).any():
            raise FailureError(f"{words}: {np.isnan(scores_n).sum():,} rows have none. Name others with --score")
        described[words] = scores_n
    names = [words.split(" of ")[0] for words in described]
    return dict(zip(names if len(set(names)) == len(names) else list(described), described.values(), strict=True))


def _named_subsets(workspace: Workspace, data: PackedData, names: Sequence[str]) -> dict[str, Bundle]:
    """Raises FailureError for one that is missing, damaged or of other data."""
    found = {}
    for name in dict.fromkeys(names):
        bundle = open_bundle(workspace.subset(name))
        bundle.rows_of(data.record)
        found[bundle.record.name if bundle.record.name not in found else name] = bundle
    return found


def _all_subsets(workspace: Workspace, data: PackedData) -> tuple[dict[str, Bundle], dict[str, str]]:
    """Every subset of these data in the workspace; and why the others are none, by name."""
    found, skipped = {}, {}
    for path in sorted(workspace.root.glob("subsets/*/subset.json")):
        name = path.parent.name
        try:
            bundle = open_bundle(path.parent)
        except FailureError:
            skipped[f"subset {name}"] = "damaged, or of another version"
            continue
        if bundle.data.train_fingerprint == data.record.train_fingerprint:
            found[name] = bundle
        else:
            skipped[f"subset {name}"] = f"of {bundle.data.key} ({bundle.data.train_fingerprint})"
    return found, skipped


def _check_size(kind: str, names: int) -> None:
    if names > _MOST:
        raise UsageError(f"{names} {kind}s are too many for a picture: name at most {_MOST} with --{kind}")


def _maps(
    key: str, scores: list[str], rho_kk: np.ndarray | None, subsets: list[str], shared: Overlaps | None
) -> list[HeatMap]:
    maps = []
    if rho_kk is not None:
        maps.append(HeatMap(f"Scores of {key}\nSpearman's ρ", scores, rho_kk, -1, 1))
    if shared is not None:
        title = f"Subsets of {key}\nin both, of the smaller (by chance)"
        maps.append(HeatMap(title, subsets, shared.share, 0, 1, shared.share_by_chance))
        title = f"Subsets of {key}\nin both, of either: Jaccard (by chance)"
        maps.append(HeatMap(title, subsets, shared.jaccard, 0, 1, shared.jaccard_by_chance))
    return maps


def _numbers(values_kk: np.ndarray) -> list[list[float | None]]:
    """For JSON, which knows no NaN."""
    return [[None if np.isnan(value) else float(value) for value in values_k] for values_k in values_kk]
