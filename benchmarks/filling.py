"""Tables of a page that are printed by the code that measured them, each between its markers."""

from __future__ import annotations

from collections.abc import Mapping


def filled(text: str, made: Mapping[str, str]) -> str:
    """The page with these tables made anew. Raises ValueError for a table that has no place in it."""
    for name, content in made.items():
        before, begin, rest = text.partition(f"<!-- table {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the page has no place for the table {name}")
        text = f"{before}{begin}{content}\n{end}{after}"
    return text
