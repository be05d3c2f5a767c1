"""`polyprune completion`: what a shell reads to complete commands, options, plugins and models."""

from __future__ import annotations

import rich_click as click
from click.shell_completion import get_completion_class

PLACES = {
    "bash": 'eval "$(polyprune completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(polyprune completion zsh)"   # in ~/.zshrc, after compinit',
    "fish": "polyprune completion fish > ~/.config/fish/completions/polyprune.fish",
}


@click.command(epilog="\n\n".join(PLACES.values()))
@click.argument("shell", type=click.Choice(list(PLACES)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes polyprune's words in SHELL."""
    found = get_completion_class(shell)
    assert found is not None
    script = found(context.find_root().command, {}, "polyprune", "_POLYPRUNE_COMPLETE")
    click.echo(script.source())
