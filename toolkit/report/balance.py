"""Class balance: how many rows of each class there are, and which share of them a subset kept. Shapes: c classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_BAR, _MOST = 30, 24  # characters; classes that are shown each


def class_balance(
    counts_c: np.ndarray, names: Sequence[str] | None = None, whole_c: np.ndarray | None = None
) -> dict[str, Any]:
    """The counts (c,) with the classes' names, the smallest and the largest class, and with `whole_c`, the counts of
    what was chosen from, the share kept: of every class, and the smallest and the largest share."""
    named = [str(label) for label in range(len(counts_c))] if names is None else list(names)
    classes: list[dict[str, Any]] = [
        {"label": label, "name": name, "rows": int(count)}
        for label, (name, count) in enumerate(zip(named, counts_c, strict=True))
    ]
    found: dict[str, Any] = {
        "classes": classes,
        "smallest": min(classes, key=lambda one: one["rows"]),
        "largest": max(classes, key=lambda one: one["rows"]),
    }
    if whole_c is not None:
        for one, whole in zip(classes, whole_c, strict=True):
            one["share_kept"] = float(one["rows"] / whole) if whole else None
        shares = [one["share_kept"] for one in classes if one["share_kept"] is not None]
        found |= {"least_kept": min(shares, default=None), "most_kept": max(shares, default=None)}
    return found


def balance_lines(balance: dict[str, Any]) -> list[str]:
    """For people: a summary, and a bar for each class; where they are many, for the smallest and the largest only."""
    classes = balance["classes"]
    least, most = balance["smallest"]["rows"], balance["largest"]["rows"]
    ratio = f", {most / least:.2f} to 1" if least else ""
    kept = ""
    if balance.get("most_kept") is not None:
        kept = f"; kept {100 * balance['least_kept']:.1f} to {100 * balance['most_kept']:.1f} % of a class"
    counts = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    summary = f"{len(classes)} classes of {counts} rows{ratio if least != most else ''}{kept}"
    if len(classes) <= _MOST:
        return [summary, *_bars(classes, most)]
    ordered = sorted(classes, key=lambda one: -one["rows"])
    half = _MOST // 4
    first, last = ordered[:half], ordered[-half:]
    lines = _bars([*first, *last], most)
    between = f"  … {len(classes) - 2 * half:,} classes between; --json tells them all"
    return [summary, *lines[:half], between, *lines[half:]]


def _bars(classes: Sequence[dict[str, Any]], most: int) -> list[str]:
    widest_name = max(len(one["name"]) for one in classes)
    widest_count = max(len(f"{one['rows']:,}") for one in classes)
    lines = []
    for one in classes:
        share = one.get("share_kept")
        kept = "" if share is None else f"  {100 * share:5.1f} %"
        bar = "█" * round(_BAR * one["rows"] / max(most, 1))
        lines.append(f"  {one['name']:<{widest_name}}  {one['rows']:>{widest_count},}{kept}  {bar}".rstrip())
    return lines
