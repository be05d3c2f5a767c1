"""`polyprune plugins`: what is installed, and what one plugin does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import rich_click as click

from polyprune_core.cli.check import check
from polyprune_core.cli.new import new
from polyprune_core.cli.params import plugin_names
from polyprune_core.errors import plain

if TYPE_CHECKING:
    from polyprune_core.plugins.registry import Registered


@click.group()
def plugins() -> None:
    """List, explain, check and write plugins."""


plugins.add_command(check)
plugins.add_command(new)


@plugins.command("list")
def list_() -> None:
    """List every plugin, where it comes from, and those that cannot be used."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polyprune_core.cli.console import show_problems, stderr
    from polyprune_core.plugins.registry import load_registry

    registry = load_registry()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "what it does", "from"):
        table.add_column(column, no_wrap=column == "name")
    for item in registry.all():
        cells = (item.provider.name, item.provider.summary, str(item.source))
        table.add_row(item.kind, *(escape(plain(cell)) for cell in cells))
    console = Console()
    console.print(table, crop=False) if console.is_terminal else Console(width=200).print(table)
    for plugin in registry.off:
        stderr().print(f"[dim]{escape(str(plugin))}[/]", soft_wrap=True)
    show_problems(registry, stderr())


@plugins.command()
@click.argument("words", nargs=-1, metavar="[WORD]...")
def search(words: tuple[str, ...]) -> None:
    """Search the plugins of other packages. Every WORD has to occur in what is said of a plugin."""
    from rich.console import Console
    from rich.markup import escape

    from polyprune_core.cli.console import stderr
    from polyprune_core.plugins.gallery import gallery
    from polyprune_core.plugins.registry import load_registry

    there = {(item.kind, item.provider.name) for item in load_registry().all()}
    found = [listed for listed in gallery() if all(map(listed.has, words))]
    console = Console(highlight=False, soft_wrap=True)
    for listed in found:
        console.print(f"[bold]{escape(listed.name)}[/] ({listed.kind}, {escape(listed.distribution)})")
        console.print(f"{escape(listed.summary)}; {escape(listed.source)}")
        console.print("installed" if (listed.kind, listed.name) in there else escape(listed.install))
        console.print(escape(listed.command))
    if not found:
        stderr().print(
            f"no plugin of another package is known for {escape(' '.join(words))}; `polyprune plugins list` shows "
            "those that are installed, `polyprune plugins new` begins one.",
            soft_wrap=True,
        )


@plugins.command()
@click.argument("name", shell_complete=plugin_names())
def show(name: str) -> None:
    """Show what the plugin NAME does, its options with types and defaults, what it needs and where it comes from."""
    from rich.console import Console
    from rich.markup import escape

    from polyprune_core.plugins.options import parse_spec
    from polyprune_core.plugins.registry import load_registry

    registry = load_registry()
    wanted, _ = parse_spec(name)
    found = [item for item in registry.all() if item.provider.name == wanted]
    if not found:
        raise registry.unknown("plugin", wanted)
    console = Console(highlight=False, soft_wrap=True)
    for item in found:
        console.print(f"[bold]{escape(item.provider.name)}[/] ({item.kind}, {escape(str(item.source))})")
        text, meanings = _description(item)
        for line in text.splitlines():
            console.print(escape(line[: len(line) - len(line.lstrip())] + plain(line)))
        for label, value in _facts(item, meanings):
            console.print(f"[bold]{label}[/] {escape(plain(value))}")


def _description(item: Registered) -> tuple[str, dict[str, str]]:
    """Returns the docstrings of the plugin's module and of its class or function, and the meaning of each option."""
    from polyprune_core.plugins.options import explain_options

    factory = item.provider.factory
    own = inspect.getdoc(factory) or ""
    if own.startswith(f"{getattr(factory, '__name__', '')}("):  # a dataclass without a docstring has its signature
        own = ""
    own, meanings = explain_options(own)
    parts = [inspect.getdoc(inspect.getmodule(factory)), own]
    return "\n\n".join(filter(None, parts)) or plain(item.provider.summary), meanings


def _facts(item: Registered, meanings: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    from polyprune_core.plugins.options import describe_options

    provider = item.provider
    module = inspect.getmodule(provider.factory)
    yield "needs", ", ".join(sorted(provider.needs)) or "nothing"
    yield "reference", provider.reference or "none given"
    yield "source", module.__name__ if module else str(item.source)
    yield "api", str(item.source.api)
    for option, text in describe_options(provider).items():
        yield "option", f"{option}: {text}"
        if option in meanings:
            yield "   ", meanings[option]
    for name, reason in provider.xfail.items():
        yield "excused from", f"{name}: {reason}"
