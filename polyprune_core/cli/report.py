"""`polyprune report`: a results store as a table, a file for a paper, or one HTML page."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import rich_click as click

from polyprune_core.cli.params import CommaList, NameOf, UserPath
from polyprune_core.errors import ConfigError


def _forms() -> Iterable[str]:
    from polyprune_core.report.document import FORMS

    return FORMS


def _shown() -> Iterable[str]:
    from polyprune_core.report.document import SHOWN

    return SHOWN


def _sorts() -> Iterable[str]:
    from polyprune_core.report.arrange import SORTS

    return (*SORTS, "none")


def _groups() -> Iterable[str]:
    from polyprune_core.report.arrange import KEYS

    return (*KEYS, "none")


@click.command()
@click.argument("stores", nargs=-1, type=UserPath(), metavar="STORE...")
@click.option("--format", "form", type=NameOf(_forms), default="table", show_default=True, help="What is written.")
@click.option("--output", "-o", type=UserPath(), metavar="FILE", help="File to write. [stdout]")
@click.option(
    "--show",
    type=NameOf(_shown),
    default="results",
    show_default=True,
    help="Which table. html has all of them.",
)
@click.option("--sort", type=NameOf(_sorts), default="perplexity", show_default=True, help="Order of the rows.")
@click.option("--reverse", is_flag=True, help="Reverse the order.")
@click.option(
    "--group-by",
    type=NameOf(_groups),
    default="sparsity",
    show_default=True,
    help="What rows are grouped by. sparsity and budget are the same groups.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE[,VALUE]",
    help="Rows to show: kind, granularity, initializer, estimator, sparsity, budget (as budget=bytes=0.9), repair, "
    "seed, scope, scale, shapes or status.",
)
@click.option(
    "--columns", type=CommaList(), metavar="LIST", help="Columns of the results, such as perplexity,n,q. [what fits]"
)
@click.option("--schema", is_flag=True, help="Print the JSON Schema of --format json and stop.")
def report(
    stores: tuple[Path, ...],
    form: str,
    output: Path | None,
    show: str,
    sort: str,
    reverse: bool,
    group_by: str,
    filters: tuple[str, ...],
    columns: tuple[str, ...] | None,
    schema: bool,
) -> None:
    """Report on results stores: folders that compare wrote, or their results.json; no model is needed.

    Stores of one model, text and setting become one table; others stand one after another.
    """
    if schema:
        from polyprune_core.results.schema import published

        click.echo(published(), nl=False)
        return
    if not stores:
        raise ConfigError("no results store given; name the folder that polyprune compare wrote, or its results.json.")
    from rich.console import Console

    from polyprune_core.cli.console import stderr
    from polyprune_core.report.arrange import Arrangement
    from polyprune_core.report.document import document
    from polyprune_core.report.load import load
    from polyprune_core.utils.files import write_atomically
    from polyprune_core.utils.outputs import check_apart

    arrangement = Arrangement(
        sort=None if sort == "none" else sort,
        reverse=reverse,
        group_by=None if group_by == "none" else group_by,
        keep=_parsed(filters),
    )
    if output is not None:
        for folder in (store if store.is_dir() else store.parent for store in stores):
            check_apart(output, {"the results": folder / "results.json", "the cells": folder / "cells"})
    loaded = load(stores)
    console = stderr()
    for note in loaded.notes:
        console.print(note, style="yellow", markup=False, soft_wrap=True)
    screen = Console(highlight=False) if output is None else None
    text = document(loaded, form, show, arrangement, columns, screen)
    if output is not None:
        write_atomically(output, text)
    else:
        sys.stdout.write(text)


def _parsed(filters: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    keep: dict[str, tuple[str, ...]] = {}
    for each in filters:
        key, equals, values = each.partition("=")
        if not equals or not values:
            raise ConfigError(f"--filter {each!r} is not KEY=VALUE[,VALUE], such as estimator=rloo,reinforce.")
        name = key.strip().replace("-", "_")
        keep[name] = (*keep.get(name, ()), *(value.strip() for value in values.split(",")))
    return keep
