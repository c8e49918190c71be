"""docs/commands.md, made of the command line itself.

python -m scripts.command_reference           print it
python -m scripts.command_reference --write   write it
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import click

from toolkit.cli import cli

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"

_HEAD = """\
# Commands

Every command with its options, as `kdtool COMMAND --help` tells them. This page is made by
`python -m scripts.command_reference --write`.

"""

Record = tuple[str, str]


def reference() -> str:
    """The page."""
    found = {name: _records(command) for name, command in cli.commands.items()}
    shared = [record for record in next(iter(found.values())) if all(record in records for records in found.values())]
    parts = [_HEAD, *_description(cli), "| command | does |\n|---|---|\n"]
    parts += [f"| [{name}](#{name}) | {_cell(_first_sentence(command))} |\n" for name, command in cli.commands.items()]
    parts += ["\n## Options of every command\n\n", _table(shared)]
    for name, command in cli.commands.items():
        arguments = " ".join(command.collect_usage_pieces(_context(command))[1:])
        parts += [f"\n## {name}\n\n", f"`kdtool {name} [OPTIONS]{f' {arguments}' if arguments else ''}`\n\n"]
        parts += _description(command)
        parts.append(_table([record for record in found[name] if record not in shared]))
    return "".join(parts).rstrip("\n") + "\n"


def _context(command: click.Command) -> click.Context:
    return click.Context(command, info_name=command.name)


def _records(command: click.Command) -> list[Record]:
    """Names and help of its options, as --help shows them."""
    context = _context(command)
    records = (parameter.get_help_record(context) for parameter in command.params)
    told = [(record[0], " ".join(record[1].split())) for record in records if record is not None and record[1]]
    return [*told, (", ".join(cli.context_settings["help_option_names"]), "Show this message and exit.")]


def _first_sentence(command: click.Command) -> str:
    first = inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " ")
    return " ".join(first.split(".  ")[0].split()).rstrip(".")


def _description(command: click.Command) -> list[str]:
    """Its help: paragraphs, and as code what --help shows line by line, which follows a line with \\b."""
    parts = []
    for paragraph in inspect.cleandoc((command.help or "").replace("\f", "")).split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0] == "\b":
            title = f"{lines[1]}\n\n" if lines[1].endswith(":") else ""
            code = inspect.cleandoc("\n".join(["", *lines[2 if title else 1 :]]))
            parts.append(f"{title}```text\n{code}\n```\n\n")
        else:
            parts.append(_escaped(" ".join(" ".join(lines).split())) + "\n\n")
    return parts


def _table(records: list[Record]) -> str:
    rows = "".join(f"| `{_bars(names)}` | {_cell(told)} |\n" for names, told in records)
    return f"| option | |\n|---|---|\n{rows}" if rows else ""


def _cell(text: str) -> str:
    return _bars(_escaped(text))


def _bars(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is."""
    for sign in ("*", "_", "["):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("<", "&lt;")


def main() -> None:
    parser = argparse.ArgumentParser(description="The page docs/commands.md.")
    parser.add_argument("--write", action="store_true")
    if parser.parse_args().write:
        PAGE.write_text(reference())
    else:
        print(reference(), end="")


if __name__ == "__main__":
    main()
