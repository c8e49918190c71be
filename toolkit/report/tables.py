"""Plain-text tables that are Markdown too."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str] = ()) -> str:
    """Columns padded to their widest cell; the first and those of `words`, by their header, are set left, others
    right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    left = [column == 0 or title in words for column, title in enumerate(header)]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(w) if to else cell.rjust(w) for cell, w, to in zip(cells, widths, left, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["", *("-" * (w + 1) + ("-" if to else ":") for w, to in zip(widths, left, strict=True)), ""])
    return "\n".join([line(header), rule, *map(line, rows)])
