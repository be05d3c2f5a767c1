"""`polyprune plugins`: what is installed, and what one plugin does."""

from __future__ import annotations

import rich_click as click

from polyprune_core.cli.check import check
from polyprune_core.cli.new import new
from polyprune_core.cli.options import plugin_names
from polyprune_core.errors import PluginError, unknown_name


@click.group()
def plugins() -> None:
    """Granularities, initializers, estimators and exporters."""


plugins.add_command(check)
plugins.add_command(new)


@plugins.command("list")
def list_() -> None:
    """List every plugin, where it comes from, and those that cannot be used."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polyprune_core.cli.console import plain, show_problems, stderr
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
    show_problems(registry, stderr())


@plugins.command()
@click.argument("name", shell_complete=plugin_names())
def show(name: str) -> None:
    """Show what the plugin NAME does, its options and its source."""
    import inspect

    from rich.console import Console
    from rich.markup import escape

    from polyprune_core.cli.console import plain
    from polyprune_core.plugins.options import describe_options, parse_spec
    from polyprune_core.plugins.registry import load_registry

    registry = load_registry()
    wanted, _ = parse_spec(name)
    found = [item for item in registry.all() if item.provider.name == wanted]
    if not found:
        raise PluginError(unknown_name("plugin", wanted, [item.provider.name for item in registry.all()]))
    console = Console(highlight=False, soft_wrap=True)
    for item in found:
        provider = item.provider
        console.print(f"[bold]{escape(provider.name)}[/] ({item.kind}, {escape(str(item.source))})")
        text = inspect.getdoc(inspect.getmodule(provider.factory)) or provider.summary
        console.print("\n".join(escape(plain(line)) for line in text.splitlines()))
        for label, value in (("needs", ", ".join(sorted(provider.needs))), ("reference", provider.reference)):
            if value:
                console.print(f"[bold]{label}[/] {escape(plain(value))}")
        for option, text in describe_options(provider).items():
            console.print(f"[bold]option[/] {escape(option)}: {escape(plain(text))}")
