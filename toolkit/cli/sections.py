"""The options of a command's help, under headings: what is the command's own first, then what many have."""

from __future__ import annotations

from functools import partial

import click

OWN = "Options"
HEADINGS = {
    "Data": ("--dataset", "--data-dir", "--limit"),
    "Network and training": (
        *("--arch", "--width", "--recipe", "--epochs", "--iterations", "--batch-size", "--lr"),
        *("--label-smoothing", "--ema"),
    ),
    "Machine": (
        *("--device", "--precision", "--threads", "--source", "--compile", "--memory-limit"),
        "--checkpoint-minutes",
    ),
    "In every command, or most": ("--dry-run", "--force", "--workspace", "--json", "--debug", "--help"),
}


class Sectioned(click.Command):
    """A command whose help shows its options so; each section keeps the command's order."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        heading_of = {option: heading for heading, options in HEADINGS.items() for option in options}
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (OWN, *HEADINGS)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[heading_of.get(parameter.opts[-1], OWN)].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


command = partial(click.command, cls=Sectioned)
