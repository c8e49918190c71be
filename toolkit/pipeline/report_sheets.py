"""Contact sheets of what each way of choosing rows kept: a few images of every class, from the packed data.

Shapes: m rows kept, c classes drawn, k images of each, h and w height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import rng_for
from toolkit.formats.bundle import Bundle, open_bundle
from toolkit.formats.dataset import PackedData, open_packed
from toolkit.formats.workspace import Workspace
from toolkit.report.drawing import contact_sheet
from toolkit.report.page import Picture
from toolkit.report.panels import percent
from toolkit.report.runs import Row, in_order

_COLUMNS, _MOST_CLASSES, _MOST_SHEETS, _SALT = 10, 20, 8, 0x5EE7


def kept_sheets(workspace: Workspace, rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """A sheet for each data set and way of choosing, all at the one fraction that most ways have (of several the
    smallest) and at its first seed; and why sheets are missing. Rows are `panels.prepared`."""
    pictures: list[Picture] = []
    missing: list[str] = []
    for dataset in dict.fromkeys(str(row["dataset"]) for row in rows):
        if not workspace.data(dataset).is_dir():
            missing.append(f"{dataset}: its packed data are not in this workspace")
            continue
        try:
            data = open_packed(workspace.data(dataset))
            if not (data.record.plan.finite and data.split("train").raw):
                missing.append(f"{dataset}: its images are stored as JPEG, which only FFCV decodes")
                continue
        except FailureError as error:
            missing.append(str(error))
            continue
        for row in _one_fraction([row for row in rows if str(row["dataset"]) == dataset]):
            if len(pictures) == _MOST_SHEETS:
                break
            try:
                bundle = open_bundle(workspace.subset(str(row["subset"])))
                kept_ckhw3, names, more = _kept(bundle, data)
            except (FailureError, UsageError) as error:
                missing.append(str(error))
                continue
            held = (dataset, f"{percent(row['frac'])} kept", f"seed {bundle.record.seed}", more)
            title = f"Kept by {row['way']}"
            file = f"kept-{len(pictures) + 1}.png"
            png = contact_sheet(kept_ckhw3, names, title, held)
            alt = f"{title}: images of {len(names)} classes of {dataset}, drawn at random from those kept"
            pictures.append(Picture(file, png, alt, (row["way"], *held)))
    return pictures, missing


def _one_fraction(rows: Sequence[Row]) -> list[Row]:
    """A row for each way, all at one fraction."""
    ways: dict[float, dict[str, Row]] = {}
    for row in in_order(in_order(rows, "seed"), "frac"):
        if row["frac"] is not None and row["frac"] < 1:
            ways.setdefault(row["frac"], {}).setdefault(row["way"], row)
    most = max(ways.values(), key=len, default={})
    return sorted(most.values(), key=lambda row: (row["way"] != "random", row["way"]))


def _kept(bundle: Bundle, data: PackedData) -> tuple[np.ndarray, list[str], str]:
    """Images (c, k, h, w, 3) uint8, white where a class kept fewer; the classes' names; and how they were drawn."""
    beton, record = data.split("train"), data.record
    rows_m = bundle.rows_of(record)
    labels_m = beton.labels_n[rows_m]
    classes = min(record.classes, _MOST_CLASSES)
    sheet_ckhw3 = np.full((classes, _COLUMNS, record.height, record.width, 3), 255, dtype=np.uint8)
    for label in range(classes):
        of_class_m = rows_m[labels_m == label]
        drawn = np.sort(rng_for(bundle.record.seed, _SALT, label).permutation(of_class_m)[:_COLUMNS])
        if len(drawn):
            sheet_ckhw3[label, : len(drawn)] = beton.frames(drawn)
    first = f"{_COLUMNS} of each class at random"
    return sheet_ckhw3, record.class_names[:classes], first if classes == record.classes else f"{first}, of {classes}"
