"""The caching pass: every row's views go through the teacher once, in parts that each survive a kill.

Shapes: n rows of a part, b batch, c classes, d features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toolkit.core.device import autocast
from toolkit.core.errors import FailureError
from toolkit.core.progress import Progress, silent
from toolkit.formats.beton import Beton
from toolkit.formats.blocks import BLOCK_ROWS
from toolkit.formats.encodings import Arrays, Encoding, FullLogits
from toolkit.formats.parts import Parts
from toolkit.formats.views_of import ViewReader
from toolkit.models.zoo import FeatureReader
from toolkit.views.plan import Plan
from toolkit.views.render import normalise

ALL_CLASSES = "all classes"  # a part's array of unencoded logits
_FEATURES_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Part:
    """Rows start … stop − 1 (positions among the rows cached) on one slot; the test split has slot 0 only."""

    split: str
    slot: int
    start: int
    stop: int

    @property
    def key(self) -> str:
        return f"{self.split}-slot-{self.slot:05d}-rows-{self.start:010d}"


def parts_of(split: str, rows: int, slots: range) -> list[Part]:
    """Slot by slot, BLOCK_ROWS rows each, so that boundaries depend on nothing but the rows."""
    return [
        Part(split, slot, start, min(start + BLOCK_ROWS, rows))
        for slot in slots
        for start in range(0, rows, BLOCK_ROWS)
    ]


@dataclass(frozen=True)
class TeacherPass:
    """The teacher, ready to run: where, how precisely, and what it makes of pixels."""

    read: FeatureReader
    mean: list[float]
    std: list[float]
    device: torch.device
    dtype: torch.dtype
    precision: str
    batch_size: int
    workers: int = 2

    def reader(self, split: Beton, plan: Plan) -> ViewReader:
        """What draws the views of a split for this teacher."""
        return ViewReader(split, plan, self.batch_size, self.device, self.workers)

    def run(self, views: ViewReader, positions_n: np.ndarray, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """(logits (n, c), features (n, d) float16) of the views of `slot` of the rows at `positions_n`.

        Raises FailureError naming the first row whose logits are not finite, or when features do not fit float16.
        """
        mean_c = torch.tensor(self.mean, dtype=self.dtype, device=self.device)
        std_c = torch.tensor(self.std, dtype=self.dtype, device=self.device)
        logits: list[Tensor] = []
        features: list[Tensor] = []
        with torch.inference_mode():
            for images_bhwc in views.slot(positions_n, slot):
                x_bchw = normalise(images_bhwc, mean_c, std_c)
                with autocast(self.device, self.precision):
                    features_bd, logits_bc = self.read(x_bchw)
                logits.append(logits_bc)
                features.append(features_bd)
            logits_nc = torch.cat(logits).cpu().numpy()
            features_nd = torch.cat(features).cpu().numpy()
        _refuse_infinite(logits_nc, views.beton.rows_n[positions_n])
        if np.abs(features_nd).max() > _FEATURES_MAX:
            raise FailureError(
                f"teacher: features beyond ±{_FEATURES_MAX:,.0f} do not fit float16. Name another --teacher"
            )
        return logits_nc, features_nd.astype(np.float16)


def _refuse_infinite(logits_nc: np.ndarray, rows_n: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(logits_nc).all(axis=1))
    if len(bad):
        raise FailureError(
            f"teacher: its logits for row {rows_n[bad[0]]} are not finite ({len(bad)} of {len(rows_n)} rows). "
            "Train it again with a smaller --lr, or name another --teacher"
        )


def run_parts(
    teacher: TeacherPass,
    split: Beton,
    positions: Callable[[Part], np.ndarray],
    plan: Plan,
    encoding: Encoding,
    todo: list[Part],
    parts: Parts,
    progress: Progress = silent,
) -> None:
    """Runs the teacher over the parts that are not there yet. `positions` gives a part's positions in `split`.

    A part holds the encoded logits. Those of the training split's canonical view also hold the features and, where the
    encoding does not keep them, the logits of all classes, which scores are computed from.
    """
    missing = [part for part in todo if part.key not in parts]
    views = teacher.reader(split, plan)
    with progress("cache-teacher", sum(part.stop - part.start for part in missing), "img") as tick:
        for part in missing:
            logits_nc, features_nd = teacher.run(views, positions(part), part.slot)
            more: Arrays = {}
            if part.slot == 0 and part.split == "train":
                more["features"] = features_nd
                if not isinstance(encoding, FullLogits):
                    more[ALL_CLASSES] = FullLogits(encoding.classes, "float16").encode(logits_nc)["logits"]
            parts.save(part.key, **encoding.encode(logits_nc), **more)
            tick(part.stop - part.start)
