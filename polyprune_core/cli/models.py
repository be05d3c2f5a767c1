"""`polyprune models`: which families can be cut, and what can be pruned of one model."""

from __future__ import annotations

import rich_click as click

from polyprune_core.errors import plain


@click.group()
def models() -> None:
    """Model families, and what can be pruned of a model."""


@models.command("list")
def list_() -> None:
    """List every family, its model types, and where its data come from."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polyprune_core.cli.console import stderr
    from polyprune_core.models.families import family_files

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("family", "model types", "kinds", "from"):
        table.add_column(column)
    for file in family_files():
        for family in file.families:
            source = f"{file.source} {file.version}".strip()
            cells = (family.name, ", ".join(family.model_types), ", ".join(family.axes), source)
            table.add_row(*(escape(plain(cell)) for cell in cells))
        if file.problem:
            stderr().print(f"[bold red]{escape(plain(f'{file.name} ({file.source}): {file.problem}'))}[/]")
    console = Console()
    console.print(table, crop=False) if console.is_terminal else Console(width=200).print(table)


@models.command("check")
@click.argument("model")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the model.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="[text]")
def check(model: str, trust_remote_code: bool, form: str) -> None:
    """Say what can be pruned of MODEL: the units and parameters of every granularity. No weights are read.

    MODEL is a catalogue name, a folder, a .gguf file or a hub id. Exit status 2 says what is missing.
    """
    import dataclasses
    import json

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from polyprune_core.runs.model_report import report_on

    found = report_on(model, trust_remote_code=trust_remote_code)
    if form == "json":
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=160, highlight=False)
    console.print(
        f"[bold]{escape(plain(found.name))}[/]: {escape(plain(found.model_type))}, "
        f"family {escape(plain(found.family))}, {found.layers} layers, {found.parameters:,} parameters"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("granularity", "units", "parameters", "of the model"):
        table.add_column(column, justify="right" if column in ("parameters", "of the model") else "left")
    for each in found.found:
        if each.why_not:
            table.add_row(each.granularity, "none", "", "")
        else:
            units = ", ".join(f"{count:,} {kind}" for kind, count in each.units.items())
            share = f"{each.parameters / found.parameters:.1%}"
            table.add_row(each.granularity, units, f"{each.parameters:,}", share)
    console.print(table)
    for note in found.notes:
        console.print(escape(plain(note)))
