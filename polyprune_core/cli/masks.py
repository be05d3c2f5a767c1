"""`polyprune masks`: what two folders of masks have in common."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from polyprune_core.cli.options import table_or_json
from polyprune_core.cli.params import UserPath


@click.group()
def masks() -> None:
    """Compare folders of masks."""


@masks.command()
@click.argument("first", type=UserPath())
@click.argument("second", type=UserPath())
@table_or_json
def diff(first: Path, second: Path, form: str) -> None:
    """Compare two folders of masks: units that both keep, and rank correlation of their scores, layer by layer."""
    from dataclasses import asdict

    from polyprune_core.runs.masks_diff import diff as compared
    from polyprune_core.runs.masks_diff import table

    groups = compared(first, second)
    if form == "json":
        click.echo(json.dumps([asdict(group) | {"overlap": group.overlap} for group in groups], indent=1))
    else:
        click.echo("\n".join(table(groups)))
