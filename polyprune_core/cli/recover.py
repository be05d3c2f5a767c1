"""`polyprune recover`: a pruned model trained for a stated number of tokens, the dense model beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import (
    CELL,
    CUTTING,
    EVALUATED,
    EVALUATION,
    LOADING_LOCAL,
    OUTPUT,
    options,
    table_or_json,
)
from polyprune_core.cli.params import UserPath, complete_text, plugin_names, setting

WHAT = [
    setting(
        "--repair",
        metavar="NAME",
        shell_complete=plugin_names("repair"),
        help="What trains: recover (all weights), recover:lora (pip install 'polyprune[recover]'), distil or another.",
    ),
    setting(
        "--tokens", type=int, metavar="N", help="Tokens to train on. Each is read once.", unless="those of --repair"
    ),
    setting(
        "--seed", type=int, metavar="N", help="What the order of the windows and the start of adapters are drawn from."
    ),
    CELL,
    setting("--model", "-m", metavar="NAME", help="Dense model.", unless="the one that the source names"),
    setting(
        "--exporter",
        metavar="NAME",
        shell_complete=plugin_names("exporter"),
        help="Form of what is written: huggingface, masks, gguf, onnx, …",
    ),
    setting("--verify", is_flag=True, help="Read it back, and run it where it is meant to run."),
]
TEXT = [
    setting("--calibration", metavar="TEXT", shell_complete=complete_text, help="Text to train on."),
    EVALUATION,
    *CUTTING,
    setting("--seq-len", type=int, metavar="T", help="Tokens of a window that is trained on."),
    *EVALUATED,
]


@click.command()
@click.argument("source")
@options(("Recover",), WHAT, TEXT, LOADING_LOCAL, OUTPUT)
@click.option("--output", "-o", type=UserPath(), required=True, help="New folder for the trained model.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
@table_or_json
def recover(
    source: str,
    config: Path | None,
    output: Path,
    overwrite: bool,
    form: str,
    quiet: bool,
    verbose: bool,
    **values: Any,
) -> None:
    """Train SOURCE further: a folder of masks, a results store with --cell, a cell's file, or a pruned model's folder.

    The dense model is trained alike beside it. The same command goes on where it was interrupted.
    """
    from polyprune_core.cli.console import opened
    from polyprune_core.config.requests import Recover

    request, registry, reporter = opened(Recover, given(values | {"source": source}, config), quiet, verbose)

    from polyprune_core.runs.recover import recover as run

    found = run(request, registry, output, overwrite, reporter)
    click.echo(json.dumps(found.to_json(), indent=1) if form == "json" else "\n".join(found.lines()))
