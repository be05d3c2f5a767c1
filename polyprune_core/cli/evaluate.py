"""`polyprune evaluate`: one model, beside the model it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import CUTTING, EVALUATED, EVALUATION, LOADING, OUTPUT, TASKS, options
from polyprune_core.cli.params import CommaList, setting

if TYPE_CHECKING:
    from polyprune_core.runs.evaluation_report import Findings

WHAT = [
    setting(
        "--model",
        "-m",
        metavar="NAME",
        help="Dense model that a folder of masks belongs to.",
        unless="the one it names",
    ),
    setting("--reference", metavar="NAME", help="Model to compare with, or none.", unless="the dense model, if known"),
]
TEXT = [
    EVALUATION,
    *CUTTING,
    *EVALUATED,
    setting("--batch-size", "-b", type=int, metavar="B", help="Items in a batch, for tasks."),
]
MORE = [
    click.option(
        "--generate",
        multiple=True,
        metavar="PROMPT",
        help="Show what the model writes after this text. May be given several times.",
    ),
    setting("--new-tokens", type=int, metavar="N", help="Tokens written by --generate and --latency."),
    setting(
        "--latency",
        is_flag=True,
        help="Time how long it takes to read a prompt and to write tokens, beside the reference.",
    ),
    setting("--latency-batch-sizes", type=CommaList(int), metavar="LIST", help="Prompts that are timed together."),
    setting(
        "--prompt-tokens",
        type=int,
        metavar="N",
        help="Tokens of a prompt, for latency, multiply-accumulates and peak memory.",
    ),
    setting("--turns", type=int, metavar="N", help="How often each model is timed."),
]


@click.command()
@click.argument("target")
@options(("EvaluateConfig",), WHAT, LOADING, TEXT, TASKS, MORE, OUTPUT)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "markdown"]),
    default="table",
    show_default=True,
    help="What is printed.",
)
def evaluate(target: str, config: Path | None, form: str, quiet: bool, verbose: bool, **values: Any) -> None:
    """Evaluate TARGET: a model's name or folder, a pruned model's folder, or a folder of masks.

    Perplexity, agreement with the dense model, size, and what else is asked for.
    """
    from polyprune_core.cli.console import TerminalReporter, check_loudness, stderr
    from polyprune_core.config.parsing import parse
    from polyprune_core.config.requests import EvaluateConfig

    check_loudness(quiet, verbose)
    values["generate"] = values["generate"] or None
    request = parse(EvaluateConfig, *given(values | {"target": target}, config))
    reporter = TerminalReporter(stderr(), quiet, verbose)
    reporter.status("loading torch and transformers")

    from polyprune_core.runs.evaluate import examine

    _print(examine(request, reporter), form, request.generate)


def _print(findings: Findings, form: str, prompts: tuple[str, ...]) -> None:
    """Prints what was found; a table in a pipe is not cut to 80 columns."""
    from rich.console import Console
    from rich.markup import escape

    from polyprune_core.report import PIPED_WIDTH
    from polyprune_core.runs.evaluation_report import below, table, to_csv, to_markdown

    console = Console(highlight=False)
    if form == "table":
        if not console.is_terminal:
            console = Console(file=console.file, width=PIPED_WIDTH, highlight=False)
        console.print(table(findings))
        for line in below(findings, prompts):
            console.print(escape(line), soft_wrap=True)
    elif form == "json":
        console.file.write(json.dumps(findings.to_json(), indent=1, allow_nan=False) + "\n")
    else:
        console.file.write(to_csv(findings) if form == "csv" else to_markdown(findings, prompts))
