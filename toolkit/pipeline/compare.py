"""kdtool compare: rank correlations of scores, and overlaps of subsets. Shapes: n rows, k scores or subsets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, several
from toolkit.core.errors import FailureError, KdtoolError, UsageError
from toolkit.core.files import whole_file
from toolkit.core.progress import Progress, silent
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import PackedData
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.data import ensure_packed
from toolkit.pipeline.found_scores import find_score, known_scores
from toolkit.pipeline.pictures import check_out, picture_path
from toolkit.pipeline.score_sources import options_of
from toolkit.report.charts import HeatMap, heat_maps, save_png
from toolkit.report.comparing import Overlaps, overlaps, rank_correlations

_MOST = 48  # names in a heat map


def compare(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    out: Place | None = None,
    score: str | Sequence[str] = (),
    subset: str | Sequence[str] = (),
    teacher: str | Sequence[str] = (),
    dataset: str = defaults.DATASET,
    data_dir: Place | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compares the scores (of each of the teachers named, by default the data set's) and the subsets named; with none
    named, every subset of the data set and every score of the teachers named, by default of all there are.

    Draws heat maps into the PNG file `out` (default: in the workspace's pictures/), and returns the same numbers:
    Spearman's ρ of every two scores (None where a score is the same for all rows), of every two subsets the rows in
    common, their share of the smaller one and of the union, and what random subsets of these sizes would share on
    average. What can't be compared (a damaged or stale score, a subset of other data), or not drawn in one picture, is
    refused where it is named and else skipped, as `skipped` tells. Raises UsageError or FailureError.
    """
    workspace, data_dir, out = Workspace.at(workspace), as_path(data_dir), as_path(out)
    scores, subsets, teachers = several(score), several(subset), several(teacher)
    if teachers and subsets and not scores:
        raise UsageError("--teacher has no meaning for --subset alone. Leave it out, or use it with --score")
    if out is not None:
        check_out(workspace, out, folder_too=False)
    data = ensure_packed(workspace, dataset, data_dir, limit, progress=progress)
    if scores or subsets:
        _check_size("score", len(set(scores)) * max(1, len(set(teachers))))
        _check_size("subset", len(set(subsets)))
        asked: Sequence[str | None] = teachers or [None]
        wanted = [(teacher, score) for teacher in dict.fromkeys(asked) for score in dict.fromkeys(scores)]
        found = _named_subsets(workspace, data, subsets)
        skipped: dict[str, str] = {}
        _check_enough(data, len(wanted), len(found))
        scored = dict(_score(workspace, data, *one) for one in wanted)
    else:
        scored, skipped = _all_scores(workspace, data, teachers)
        found, skipped_subsets = _all_subsets(workspace, data)
        skipped |= skipped_subsets
        _check_enough(data, len(scored), len(found))
    scored = _shortly_named(scored)
    path = _default_path(workspace, data, scores, subsets, teachers) if out is None else out
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


def _default_path(
    workspace: Workspace, data: PackedData, scores: Sequence[str], subsets: Sequence[str], teachers: Sequence[str]
) -> Path:
    """Named after what was named."""
    path = picture_path(workspace, data.record.key, "compare", *scores, *subsets, *(f"of-{one}" for one in teachers))
    return path.with_name(f"{path.name}.png")


def _all_scores(
    workspace: Workspace, data: PackedData, teachers: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every score of these data, as many as a picture holds, by what it is; and why others are not among them. Raises
    FailureError for a teacher that was named and is nowhere."""
    names: list[str | None] = list(dict.fromkeys(teachers))
    if not teachers:
        names = [None, *sorted(path.name for path in workspace.root.glob("teachers/*") if path.is_dir())]
    where: dict[str, tuple[str | None, str]] = {}
    scored: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for teacher in names:
        try:
            known = known_scores(workspace, data, teacher)
        except FailureError as error:
            if teachers:
                raise
            skipped[f"teacher {teacher}"] = _reason(error)
            continue
        skipped |= {path: _reason(error).removeprefix(f"{path}: ") for path, error in known.unreadable.items()}
        for score, words in known.names.items():
            where.setdefault(words, (teacher, score))
    left = 0
    for words, (teacher, score) in where.items():
        if len(scored) == _MOST:
            left += 1
            continue
        try:
            scored[words] = _score(workspace, data, teacher, score)[1]
        except KdtoolError as error:
            skipped[f"score {words}"] = _reason(error)
    return scored, {**skipped, **_too_many("score", left)}


def _score(workspace: Workspace, data: PackedData, teacher: str | None, name: str) -> tuple[str, np.ndarray]:
    """(what it is, the score of every row). Raises FailureError for one that rows lack, and as `find_score` does."""
    scores_n, words = find_score(workspace, data, teacher, name)
    if np.isnan(scores_n).any():
        raise FailureError(f"{words}: {np.isnan(scores_n).sum():,} rows have none. Name others with --score")
    return words, scores_n


def _shortly_named(scored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without their teachers' names, where all scores are told apart without."""
    names = [words.split(" of ")[0] for words in scored]
    return dict(zip(names, scored.values(), strict=True)) if len(set(names)) == len(names) else scored


def _reason(error: object) -> str:
    """An error without what to run."""
    return str(error).split(". Run: ")[0]


def _too_many(kind: str, left: int) -> dict[str, str]:
    return {f"{left} more {kind}s": f"a picture holds {_MOST}: name others with --{kind}"} if left else {}


def _named_subsets(workspace: Workspace, data: PackedData, names: Sequence[str]) -> dict[str, Bundle]:
    """Raises FailureError for one that is missing, damaged or of other data."""
    found = {}
    for name in dict.fromkeys(names):
        bundle = open_bundle(workspace.subset(name))
        bundle.rows_of(data.record)
        found[bundle.record.name if bundle.record.name not in found else name] = bundle
    return found


def _all_subsets(workspace: Workspace, data: PackedData) -> tuple[dict[str, Bundle], dict[str, str]]:
    """The subsets of these data in the workspace, as many as a picture holds; and why others are not among them."""
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
    kept = dict(list(found.items())[:_MOST])
    return kept, {**skipped, **_too_many("subset", len(found) - len(kept))}


def _check_enough(data: PackedData, scores: int, subsets: int) -> None:
    if scores < 2 and subsets < 2:
        raise UsageError(
            f"{scores} scores and {subsets} subsets of {data.record.key} to compare: it takes two of either. Run "
            f"kdtool cache-teacher or kdtool build-subset {options_of(data.record)}, or name more of them"
        )


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
