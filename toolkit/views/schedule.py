"""The schedule: which slot row r shows in epoch e, and which cached slot serves as its target.

Each row walks round its slots from a start of its own, so that any `slots` consecutive epochs show every slot once,
whatever the batch size, the order or the other rows. Shapes: n rows, k cached slots, v views of the family.
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


def nearest_slots(plan: Plan, views_nk: np.ndarray) -> np.ndarray:
    """For each row and each view of the family, the cached slot whose shift is nearest: (n, v) int16.

    `views_nk` holds the cached views. Only slots with the same mirroring compete where the row has one (it has, from
    two slots on); equal distances go to the lowest slot.
    """
    dy_v, dx_v, mirrored_v = plan.decode(np.arange(plan.size))
    nearest_nv = np.empty((len(views_nk), plan.size), dtype=np.int16)
    rows_at_a_time = max(1, _DISTANCES_AT_A_TIME // (plan.size * views_nk.shape[1]))
    for start in range(0, len(views_nk), rows_at_a_time):
        block = slice(start, start + rows_at_a_time)
        dy_nk, dx_nk, mirrored_nk = plan.decode(views_nk[block])
        distance_nvk = (dy_nk[:, None, :] - dy_v[:, None]) ** 2 + (dx_nk[:, None, :] - dx_v[:, None]) ** 2
        farther_than_any = 2 * (2 * plan.padding + 1) ** 2
        distance_nvk += farther_than_any * (mirrored_nk[:, None, :] != mirrored_v[:, None])
        nearest_nv[block] = distance_nvk.argmin(axis=2)
    return nearest_nv
