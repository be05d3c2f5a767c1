"""The command line: parse, call, print. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import sys

import rich_click as click

from polyprune_core import __version__
from polyprune_core.cli.compare import compare
from polyprune_core.cli.plugins import plugins
from polyprune_core.cli.prune import prune
from polyprune_core.cli.report import report
from polyprune_core.errors import PolypruneError


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "auto_envvar_prefix": "POLYPRUNE",
    }
)
@click.version_option(__version__, prog_name="polyprune")
def cli() -> None:
    """Structural pruning of language models: every criterion through one harness."""


for command in (compare, prune, report, plugins):
    cli.add_command(command)


def main() -> None:
    """Runs the command line; a user error is one message on stderr and exit status 2."""
    try:
        cli(standalone_mode=False)
    except PolypruneError as error:
        click.echo(f"polyprune: {error}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"polyprune: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("polyprune: interrupted; finished cells are kept.", err=True)
        sys.exit(130)
