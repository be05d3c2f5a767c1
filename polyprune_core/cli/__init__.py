"""The command line: parse, call, print. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich_click as click

from polyprune_core.cli.compare import compare
from polyprune_core.cli.completion import completion
from polyprune_core.cli.evaluate import evaluate
from polyprune_core.cli.export import export
from polyprune_core.cli.plugins import plugins
from polyprune_core.cli.prune import prune
from polyprune_core.cli.report import report
from polyprune_core.errors import PolypruneError, plain
from polyprune_core.plugins.deprecation import PluginDeprecationWarning
from polyprune_core.plugins.discovery import NO_EXTERNAL
from polyprune_core.version import __version__


@click.group(
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "auto_envvar_prefix": "POLYPRUNE",
    }
)
@click.version_option(__version__, prog_name="polyprune")
@click.option("--no-external", is_flag=True, help="Load polyprune's own plugins only.")
@click.pass_context
def cli(context: click.Context, no_external: bool) -> None:
    """Structural pruning of language models: every criterion through one harness."""
    if no_external:
        context.with_resource(_only_own_plugins())


for command in (compare, prune, evaluate, export, report, plugins, completion):
    cli.add_command(command)


@contextmanager
def _only_own_plugins() -> Iterator[None]:
    before = os.environ.get(NO_EXTERNAL)
    os.environ[NO_EXTERNAL] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[NO_EXTERNAL]
        else:
            os.environ[NO_EXTERNAL] = before


@contextmanager
def _deprecations_shown() -> Iterator[None]:
    """Prints what plugins use that is to be withdrawn, once each, as lines of ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("once", category=PluginDeprecationWarning)
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, PluginDeprecationWarning):
                click.echo(f"polyprune: {plain(str(message))}", err=True)
            else:
                show(message, category, *where, **more)

        warnings.showwarning = line
        yield


def main() -> None:
    """Runs the command line; a user error is one message on stderr and exit status 2."""
    try:
        with _deprecations_shown():
            cli(standalone_mode=False, prog_name="polyprune")
    except PolypruneError as error:
        lines = map(plain, str(error).splitlines())  # what a plugin raises may hold control codes
        click.echo("polyprune: " + "\n".join(lines), err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"polyprune: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt) as error:
        click.echo(f"polyprune: interrupted; {error}." if str(error) else "polyprune: interrupted.", err=True)
        sys.exit(130)
