"""Sizes in bytes, as people read them: in powers of 1,024 everywhere."""

from __future__ import annotations


def in_words(count_bytes: float) -> str:
    """Such as 512 bytes, 1.5 KiB, 20.0 MiB or 1,234.5 GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count_bytes) < 1024:
            return f"{count_bytes:.0f} {unit}" if unit == "bytes" else f"{count_bytes:.1f} {unit}"
        count_bytes /= 1024
    return f"{count_bytes:,.1f} GiB"
