"""kdtool completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from toolkit.cli import options as opt
from toolkit.cli.sections import command

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_KDTOOL_COMPLETE"  # click's own name for it, which the script sets


@command()
@click.argument("shell", type=click.Choice(SHELLS))
@opt.about(
    reads="nothing; once it is in use, the names in the workspace", writes="nothing", example="kdtool completion bash"
)
def completion(shell: str) -> None:
    """Print what makes a shell complete names.

    Commands, options, data sets, networks, methods, scores, and the teachers, subsets and runs of the workspace.

    \b
    bash    in ~/.bashrc:  eval "$(kdtool completion bash)"
    zsh     in ~/.zshrc:   eval "$(kdtool completion zsh)"
    fish    kdtool completion fish > ~/.config/fish/completions/kdtool.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # click knows all of SHELLS
    click.echo(found(click.get_current_context().find_root().command, {}, "kdtool", VARIABLE).source())
