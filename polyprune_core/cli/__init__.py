"""The command line: parse, call, print. Heavy libraries are imported inside the commands."""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich_click as click

from polyprune_core.cli.compare import compare
from polyprune_core.cli.completion import completion
from polyprune_core.cli.evaluate import evaluate
from polyprune_core.cli.export import export
from polyprune_core.cli.masks import masks
from polyprune_core.cli.models import models
from polyprune_core.cli.plugins import plugins
from polyprune_core.cli.prune import prune
from polyprune_core.cli.recover import recover
from polyprune_core.cli.report import report
from polyprune_core.cli.sample import sample
from polyprune_core.cli.streams import require_stdout, stoppable, streams, tell
from polyprune_core.errors import PluginError, PolypruneError, plain
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


for command in (compare, prune, recover, evaluate, export, report, sample, masks, models, plugins, completion):
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
    gc.set_threshold(10_000, 20, 50)  # seldom: most of what is made here is libraries, of which nothing is garbage
    said: dict[str, Any] = {}
    with streams(), stoppable() as stopped, _deprecations_shown():
        try:
            require_stdout()
            try:
                cli(standalone_mode=False, prog_name="polyprune", obj=said)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
            return
        except PolypruneError as error:
            if said.get("verbose") and isinstance(error, PluginError):
                tell("".join(traceback.format_exception(error)))
            tell("polyprune: " + str(error))
            status = error.status
        except click.ClickException as error:
            tell(f"polyprune: {_message(error)}")
            status = 2
        except OSError as error:
            tell(f"polyprune: {error.filename}: {error.strerror}." if error.filename else f"polyprune: {error}.")
            status = 2
        except (click.Abort, KeyboardInterrupt) as error:
            how = f"stopped by {signal.Signals(stopped[0]).name}" if stopped else "interrupted"
            tell(f"polyprune: {how}; {error}." if str(error) else f"polyprune: {how}.")
            status = 128 + (stopped[0] if stopped else signal.SIGINT)
    sys.exit(status)


def _message(error: click.ClickException) -> str:
    """Returns what click says, with no more than the likeliest of the options that it would suggest."""
    if isinstance(error, click.NoSuchOption):
        known = {option.strip("-"): option for option in error.possibilities or ()}
        near = difflib.get_close_matches(error.option_name.strip("-"), known, cutoff=0.6)
        error = click.NoSuchOption(error.option_name, possibilities=[known[name] for name in near], ctx=error.ctx)
    return error.format_message()
