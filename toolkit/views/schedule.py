"""The schedule: which slot row r shows in epoch e, and which cached slot serves as its target.

Each row walks round its slots from a start of its own, so that any `slots` consecutive epochs show every slot once,
whatever the batch size, the order or the other rows. Shapes: n rows, b rows of a block, k cached slots.
"""

from __future__ import annotations

import numpy as np

from toolkit.core.hashing import mix
from toolkit.views.plan import Plan

_SALT = 0x5C4ED
_DISTANCES_AT_A_TIME = 4_000_000


def slots_shown(rows_n: np.ndarray, epoch: int, slots: int, seed: int) -> np.ndarray:
    """The slot each row shows in `epoch` (from 0): (n,) int64 in 0 … slots − 1."""
    start_n = mix(seed, _SALT, rows_n) % np.uint64(slots)
    return (start_n.astype(np.int64) + epoch) % slots


def nearest_slots(
    plan: Plan, rows_n: np.ndarray, views_n: np.ndarray, cached_nk: np.ndarray, sizes_n2: np.ndarray
) -> np.ndarray:
    """For each row and the view it shows, the slot whose cached view lies nearest: (n,) int64.

    Nearest by the squared distance of the corners, in pixels. Only slots with the same mirroring compete where the row
    has one (it has, from two slots on); equal distances go to the lowest slot.
    """
    nearest_n = np.empty(len(rows_n), dtype=np.int64)
    rows_at_a_time = max(1, _DISTANCES_AT_A_TIME // cached_nk.shape[1])
    for start in range(0, len(rows_n), rows_at_a_time):
        block = slice(start, start + rows_at_a_time)
        rows_b, sizes_b2, cached_bk = rows_n[block], sizes_n2[block], cached_nk[block]
        slots = cached_bk.shape[1]
        corners_b, mirrored_b = _corners(plan.geometry(rows_b, views_n[block], sizes_b2))
        cached = plan.geometry(np.repeat(rows_b, slots), cached_bk.ravel(), np.repeat(sizes_b2, slots, axis=0))
        corners_bk, mirrored_bk = (values.reshape(*cached_bk.shape, *values.shape[1:]) for values in _corners(cached))
        distance_bk = ((corners_bk - corners_b[:, None]) ** 2).sum(axis=2)
        farther_than_any = 1 << 40
        distance_bk += farther_than_any * (mirrored_bk != mirrored_b[:, None])
        nearest_n[block] = distance_bk.argmin(axis=1)
    return nearest_n


def _corners(geometry_ng: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the view's upper left and, where it has its own size, lower right corner (n, 2 or 4), mirrored (n,))."""
    place_ng = geometry_ng[:, :-1].astype(np.int64)
    if place_ng.shape[1] == 4:
        place_ng[:, 2:] += place_ng[:, :2]
    return place_ng, geometry_ng[:, -1]
