"""`polyprune export`: what was decided before, in another format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import CELL, LOADING_LOCAL, OUTPUT, options, table_or_json
from polyprune_core.cli.params import UserPath, setting

WHAT = [
    setting("--exporter", metavar="NAME", help="Form of what is written: huggingface, masks, gguf, onnx, …"),
    CELL,
    setting("--verify", is_flag=True, help="Read it back, compare its logits, and run it where it is meant to run."),
    setting("--by-shard", is_flag=True, help="Read the dense weights a tensor at a time, for models beyond memory."),
    setting("--model", "-m", metavar="NAME", help="Dense model.", unless="the one that the masks or the store name"),
]


@click.command()
@click.argument("source", type=UserPath())
@options(("Export",), WHAT, LOADING_LOCAL, OUTPUT)
@click.option("--output", "-o", type=UserPath(), required=True, help="New folder for the pruned model.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
@table_or_json
def export(
    source: Path,
    config: Path | None,
    output: Path,
    overwrite: bool,
    form: str,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Write the model that SOURCE decided on: a folder of masks, a results store with --cell, or the file of a cell."""
    from polyprune_core.cli.console import opened
    from polyprune_core.config.requests import Export

    request, registry, reporter = opened(Export, given(values | {"source": source}, config), quiet, verbose)

    from polyprune_core.runs.export import export as run

    exported = run(request, registry, output, overwrite, reporter)
    click.echo(json.dumps(exported.to_json(), indent=1) if form == "json" else "\n".join(exported.lines()))
