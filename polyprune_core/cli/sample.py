"""`polyprune sample`: text that a model writes, to calibrate on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import MODEL, OUTPUT, options, table_or_json
from polyprune_core.cli.params import UserPath, setting

WHAT = [
    setting("--tokens", type=int, metavar="N", help="Tokens to write, in whole texts."),
    setting("--length", type=int, metavar="T", help="Tokens of a text."),
    setting("--start", metavar="TEXT", help="What each text goes on from.", unless="the token that begins a text"),
    setting("--temperature", type=float, metavar="X", help="Below 1: likelier text. Above 1: more varied text."),
    setting("--seed", type=int, metavar="N", help="What is drawn depends on it, and on the batch size."),
    setting("--batch-size", "-b", type=int, metavar="B", help="Texts that are written side by side."),
]


@click.command()
@options(("Sample",), MODEL, WHAT, OUTPUT)
@click.option("--output", "-o", type=UserPath(), required=True, help="New file for the text.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it is there.")
@table_or_json
def sample(
    config: Path | None, output: Path, overwrite: bool, form: str, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Have a model write text, which --calibration takes: alone where there is no other text, or in a mix."""
    from polyprune_core.cli.console import opened
    from polyprune_core.config.requests import Sample

    request, _, reporter = opened(Sample, given(values, config), quiet, verbose)

    from polyprune_core.runs.sample import write_sample

    written = write_sample(request, output, overwrite, reporter)
    click.echo(json.dumps(written.to_json(), indent=1) if form == "json" else "\n".join(written.lines()))
