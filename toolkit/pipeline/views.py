"""kdtool views: a picture of what teacher and student are shown.

Shapes: n rows of the data or the subset, r rows drawn, k slots, h and w height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from toolkit.core import defaults
from toolkit.core.asked import Place, as_path, several
from toolkit.core.errors import FailureError, UsageError
from toolkit.core.files import whole_file
from toolkit.core.progress import Progress, silent
from toolkit.data.pack import first_of_each_class
from toolkit.formats.beton import Beton
from toolkit.formats.views_of import ViewReader
from toolkit.formats.workspace import Workspace
from toolkit.pipeline.cache_request import slots_for
from toolkit.pipeline.data import bundle_and_data
from toolkit.report import montage as picture
from toolkit.views.plan import Plan

_TILE, _MOST = 64, 8192


def views(
    workspace: Workspace | Place = defaults.WORKSPACE,
    *,
    montage: Place,
    dataset: str = defaults.DATASET,
    views: str | int = defaults.SHOWN_VIEWS,
    rows: int = defaults.SHOWN_ROWS,
    row: int | Sequence[int] = (),
    scale: int | None = None,
    subset: str | None = None,
    data_dir: Place | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Draws the first slots of training rows into the PNG file `montage`, pixel for pixel what the teacher is shown.

    Shows the rows numbered `row` of the packed data, or else the first `rows` rows, taken from each class in turn; with
    `subset`, only that bundle's. A pixel becomes a square of `scale`, by default so that a view is about 64 wide.
    Raises UsageError or FailureError.
    """
    if rows < 1:
        raise UsageError(f"--rows must be at least 1, got {rows}")
    if scale is not None and scale < 1:
        raise UsageError(f"--scale must be at least 1, got {scale}")
    path, row_numbers = as_path(montage), several(row)
    workspace, data_dir = Workspace.at(workspace), as_path(data_dir)
    _check_path(path)
    bundle, data = bundle_and_data(workspace, subset, dataset, data_dir, limit, progress)
    beton, plan = data.split("train"), data.record.plan
    slots = slots_for(views, plan)
    rows_n = np.arange(len(beton)) if bundle is None else bundle.rows_of(data.record)
    if row_numbers:
        rows_r = _asked_for(row_numbers, rows_n, data.record.key if bundle is None else f"subset {subset}")
    else:
        rows_r = rows_n[first_of_each_class(beton.labels_n[rows_n], rows)]
    labels_r = [picture.class_label(data.record.class_names, label) for label in beton.labels_n[rows_r]]
    layout = picture.Layout(
        tuple(zip(rows_r.tolist(), labels_r, strict=True)),
        slots,
        plan.height,
        plan.width,
        scale or max(1, round(_TILE / max(plan.height, plan.width))),
    )
    _check_size(layout, "name fewer with --row" if row_numbers else "lower --rows")
    picture_yx3 = picture.montage(views_of(beton, plan, rows_r, slots), layout)
    with whole_file(path) as temporary:
        Image.fromarray(picture_yx3).save(temporary, format="PNG")
    return {
        "path": str(path),
        "dataset": data.record.key,
        "rows": len(rows_r),
        "row_numbers": rows_r.tolist(),
        "slots": slots,
        "family": plan.geometry_in_words,
        "scale": layout.scale,
        "height": layout.size[0],
        "width": layout.size[1],
    }


def views_of(beton: Beton, plan: Plan, rows_r: np.ndarray, slots: int) -> np.ndarray:
    """The first `slots` slots of these rows, by the renderer that draws for teacher and student: (r, k, h, w, 3)."""
    reader = ViewReader(beton, plan, len(rows_r), torch.device("cpu"))
    slots_krhw3 = [torch.cat(list(reader.slot(rows_r, slot))).numpy() for slot in range(slots)]
    return np.stack(slots_krhw3, axis=1)


def _asked_for(row_numbers: Sequence[int], rows_n: np.ndarray, where: str) -> np.ndarray:
    there = set(rows_n.tolist())
    for row in row_numbers:
        if row not in there:
            nearest = min(there, key=lambda known: abs(known - row))
            raise UsageError(
                f"--row {row} is not among the {len(there):,} training rows of {where}; the nearest is {nearest}. "
                "Name one of them"
            )
    return np.array(list(dict.fromkeys(row_numbers)))  # each once, in the order asked for


def _check_path(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise FailureError(f"{path}: the picture is a PNG file. Give --montage a name that ends in .png")
    if not path.parent.is_dir():
        raise FailureError(f"{path}: there is no folder {path.parent}. Make it, or name a file in another one")


def _check_size(layout: picture.Layout, fewer_rows: str) -> None:
    height, width = layout.size
    smaller = ["lower --views"] * (width > _MOST) + [fewer_rows] * (height > _MOST)
    if smaller:
        ways = " and ".join(smaller) + ", or lower --scale" * (layout.scale > 1)
        raise UsageError(
            f"--montage: the picture would be {width:,} × {height:,} pixels, more than {_MOST:,} a side: {ways}"
        )
