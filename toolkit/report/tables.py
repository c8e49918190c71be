"""Plain-text tables that are Markdown too."""

from __future__ import annotations

from collections.abc import Sequence

_MOST_LETTERS = 3  # of a number: 8.4 MB


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; the first is set left, as are all that hold words, and numbers right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    right = [column > 0 and all(_is_number(row[column]) for row in rows) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.rjust(w) if to else cell.ljust(w) for cell, w, to in zip(cells, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join(["", *("-" * (w + 1) + (":" if to else "-") for w, to in zip(widths, right, strict=True)), ""])
    return "\n".join([line(header), rule, *map(line, rows)])


def _is_number(cell: str) -> bool:
    """Or nothing, or a sign that stands for one: ± and a count in brackets may follow it."""
    return not cell[:1].isalpha() and sum(sign.isalpha() for sign in cell) <= _MOST_LETTERS
