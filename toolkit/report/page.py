"""A report as one HTML page that needs nothing else: its style is inline, its pictures are data, and no script runs.

Whatever comes from runs (names, paths, notes) is escaped.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from toolkit.report.plots import Panel, table_of

_MOST_ROWS = 200  # of a table in the page; its CSV file has all


@dataclass(frozen=True)
class Picture:
    """A PNG file with its name, what it shows in words, what is held fixed, and the table behind it."""

    file: str
    png: bytes
    alt: str
    held: tuple[str, ...]
    header: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Section:
    """Pictures under a title, how to read them, the CSV file of all of them, and a note of what was left out."""

    title: str
    read: str
    pictures: tuple[Picture, ...]
    csv: str | None = None
    left: str = ""


@dataclass(frozen=True)
class Page:
    """All that a report says. `facts` are named, `not_drawn` are plots and why; `main` is the table of means."""

    title: str
    facts: Sequence[tuple[str, str]]
    main_header: Sequence[str]
    main_cells: Sequence[Sequence[str]]
    main_read: str
    sections: Sequence[Section]
    not_drawn: Sequence[tuple[str, str]]
    not_counted: str
    skipped: Sequence[str]
    notes: Sequence[str]


def picture_of(panel: Panel, file: str, png: bytes) -> Picture:
    """A panel's picture, with its alternative text and its table."""
    header, cells = table_of([panel])
    kept = [at for at, name in enumerate(header) if at > 1 and any(row[at] for row in cells)]
    shown = tuple(tuple(row[at] for at in kept) for row in cells)
    return Picture(file, png, in_words(panel), panel.held, tuple(header[at] for at in kept), shown)


def in_words(panel: Panel) -> str:
    """What a picture shows, for who cannot see it: each line from its first to its last point."""
    said = []
    for line in panel.lines:
        first, last = line.points[0], line.points[-1]
        if line.level or len(line.points) == 1:
            said.append(f"{line.name}: {first.y:.4g}")
        else:
            said.append(f"{line.name}: {first.y:.4g} at {first.x:.4g}, {last.y:.4g} at {last.x:.4g}")
    more = f"; and {len(said) - 12} more" if len(said) > 12 else ""
    return f"{panel.title}: {panel.y.label} against {panel.x.label}. {'; '.join(said[:12])}{more}."


def html_page(page: Page) -> str:
    """The whole document."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.facts)
    missing = "".join(f"<li><b>{escape(title)}</b>: {escape(why)}</li>" for title, why in page.not_drawn)
    notes = "".join(f"<li>{escape(note)}</li>" for note in [*page.skipped, *page.notes])
    parts = [
        f"<header><h1>{escape(page.title)}</h1><dl>{facts}</dl></header>",
        f"<section><h2>Means and paired differences</h2><p>{escape(page.main_read)}</p>"
        f"{html_table(page.main_header, page.main_cells)}"
        '<p class="file">All of them: results.csv; each run: runs.csv</p></section>',
        *map(_section, page.sections),
        f"<section><h2>What was not drawn</h2><ul>{missing}</ul></section>" if missing else "",
        f"<section><h2>Costs</h2><p>{escape(page.not_counted)}</p></section>",
        f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else "",
    ]
    return _DOCUMENT.format(title=escape(page.title), style=_STYLE, body="\n".join(part for part in parts if part))


def _section(section: Section) -> str:
    pictures = "\n".join(map(_figure, section.pictures))
    csv = f'<p class="file">All points: {escape(section.csv)}</p>' if section.csv else ""
    left = f"<p>{escape(section.left)}</p>" if section.left else ""
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.read)}</p>"
        f'<div class="pictures">{pictures}</div>{left}{csv}</section>'
    )


def _figure(picture: Picture) -> str:
    held = f"Held fixed: {escape(', '.join(picture.held))}" if picture.held else ""
    data = b64encode(picture.png).decode("ascii")
    table = ""
    if picture.header:
        table = f"<details><summary>The numbers</summary>{html_table(picture.header, picture.cells)}</details>"
    return (
        f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{held} <span>{escape(picture.file)}</span></figcaption>{table}</figure>"
    )


def html_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in cells[:_MOST_ROWS])
    left = len(cells) - _MOST_ROWS
    more = f"<p>and {left:,} lines more in the CSV file</p>" if left > 0 else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>{more}'


_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1a1a; --faint: #5a5a5a; --rule: #d4d4d4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181c; --ink: #e8e8e8; --faint: #a8a8a8; --rule: #3c4048; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .3rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
p { max-width: 46rem; margin: .3rem 0 .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; }
.wide { overflow: auto; max-height: 36rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { text-align: right; padding: .2rem .6rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: var(--paper); vertical-align: bottom; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem;
  align-items: start; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
img { display: block; width: 100%; max-width: 36rem; height: auto; background: #ffffff; border-radius: 4px; }
figcaption, .file, summary { color: var(--faint); font-size: .875rem; }
figcaption { margin: .3rem 0; } figcaption span { display: block; font-family: monospace; }
summary { cursor: pointer; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin: 0 0 .4rem; } }
@media print {
  :root { --paper: #ffffff; --ink: #000000; --faint: #444444; --rule: #bbbbbb; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .pictures { grid-template-columns: 1fr 1fr; } .wide { overflow: visible; max-height: none; } table { font-size: 8pt; }
  h2 { break-after: avoid; }
}
"""

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
