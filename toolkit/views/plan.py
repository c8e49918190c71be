"""The plan: which view is slot k of row r. A small record, and a pure function of it.

Slots walk through the whole family without repeating: first the image itself, and where the family has mirrors they
alternate, so that any two neighbouring slots show both. Shapes: n rows, k slots, s shifts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from toolkit.core.errors import FailureError, UsageError
from toolkit.core.hashing import fingerprint, mix
from toolkit.views.families import PadCrop, family_named

_RENDERER = "pad-crop/1"
_ROWS_AT_A_TIME = 8192
_SALT = 0x51075


@dataclass(frozen=True)
class Plan:
    """`family` and its geometry (pixels), the seed, and the name and version of the renderer that draws it."""

    family: str
    height: int
    width: int
    padding: int
    seed: int = 0
    renderer: str = _RENDERER

    def __post_init__(self) -> None:
        self._family  # noqa: B018 - an unknown family is refused here
        if self.renderer != _RENDERER:
            raise FailureError(
                f"view plan: drawn by renderer {self.renderer}, this kdtool draws {_RENDERER}. "
                "Run kdtool cache-teacher again with this version"
            )

    @cached_property
    def _family(self) -> PadCrop:
        return family_named(self.family, self.padding)

    @property
    def size(self) -> int:
        """The number of distinct views, hence the largest number of slots."""
        return self._family.size

    def views(self, rows_n: np.ndarray, slots: int) -> np.ndarray:
        """The views of the first `slots` slots of each row: (n, slots) int16. Column 0 is view 0."""
        if not 1 <= slots <= self.size:
            raise UsageError(
                f"--views must be 1 to {self.size} for {self.family} with padding {self.padding}, got {slots}"
            )
        views_nk = np.empty((len(rows_n), slots), dtype=np.int16)
        for start in range(0, len(rows_n), _ROWS_AT_A_TIME):
            block = slice(start, start + _ROWS_AT_A_TIME)
            views_nk[block] = self._views_of_block(np.asarray(rows_n[block]), slots)
        return views_nk

    def _views_of_block(self, rows_n: np.ndarray, slots: int) -> np.ndarray:
        family = self._family
        shifts_s = np.arange(family.shifts)
        views_nk = np.empty((len(rows_n), slots), dtype=np.int16)
        for mirror in range(min(family.mirrors, slots)):
            keys_ns = mix(self.seed, _SALT, mirror, rows_n[:, None], shifts_s[None, :])
            if mirror == 0:
                keys_ns[:, 0] = 0  # the image itself comes first
            shuffled_ns = np.argsort(keys_ns, axis=1, kind="stable")
            columns = len(range(mirror, slots, family.mirrors))
            views_nk[:, mirror :: family.mirrors] = shuffled_ns[:, :columns] + mirror * family.shifts
        return views_nk

    def decode(self, views: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(dy, dx, mirrored) of each view; see PadCrop.decode."""
        return self._family.decode(views)

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any], source: str) -> Plan:
        """Raises FailureError naming `source` when the record is not a plan's."""
        try:
            return cls(**record)
        except TypeError as error:
            raise FailureError(f"{source}: its view plan is not readable ({error}). Make the file again") from error

    @property
    def fingerprint(self) -> str:
        return fingerprint(*(f"{name}={value};" for name, value in sorted(self.to_record().items())))
