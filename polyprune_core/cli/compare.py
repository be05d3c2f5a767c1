"""`polyprune compare`: a grid of criteria through one harness, one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from polyprune_core.cli.options import MODEL, OUTPUT, SEARCH, TEXT, CommaList, _option, given, options

if TYPE_CHECKING:
    from polyprune_core.results import Row

GRID = [
    _option("--estimators", type=CommaList(), metavar="LIST", help="Searches: reinforce, rloo, antithetic, … [none]"),
    _option("--initializers", type=CommaList(), metavar="LIST", help="Metrics that searches start from. [wanda]"),
    _option("--baselines", type=CommaList(), metavar="LIST", help="Metrics shown alone. [random,magnitude,wanda]"),
    _option(
        "--granularity",
        type=CommaList(),
        metavar="LIST",
        help="What a unit is; + joins kinds in one space. [head+channel]",
    ),
    _option(
        "--sparsity", "-s", type=CommaList(float), metavar="LIST", help="Fraction of prunable parameters removed. [0.2]"
    ),
    _option("--seeds", type=CommaList(int), metavar="LIST", help="Calibration samples and masks. [0]"),
    _option("--scope", type=CommaList(), metavar="LIST", help="Who shares a budget: kind, global or layer. [kind]"),
    _option(
        "--scale",
        type=CommaList(),
        metavar="LIST",
        help="Scores compared across layers: raw, zscore or per-parameter. [zscore]",
    ),
]


@click.command()
@options(GRID, MODEL, TEXT, SEARCH, OUTPUT)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    default=Path("polyprune-runs"),
    show_default=True,
    help="Results store; cells finished there are read, not run again.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "markdown", "latex"]),
    default="table",
    show_default=True,
    help="What stdout gets.",
)
def compare(config: Path | None, output: Path, form: str, quiet: bool, **values: Any) -> None:
    """Compare pruning criteria on one model: dense, metrics alone, then each search.

    Options of a plugin follow its name: llm-pruner:taylor=vector.
    """
    from polyprune_core.cli.console import TerminalReporter, show_problems, stderr
    from polyprune_core.config import Comparison, parse
    from polyprune_core.plugins.registry import load_registry

    console = stderr()
    request = parse(Comparison, given(values, config))
    registry = load_registry()
    show_problems(registry, console)
    reporter = TerminalReporter(console, quiet)
    reporter.status("loading torch and transformers")

    from polyprune_core import report
    from polyprune_core.pipeline import compare as run
    from polyprune_core.store import Store

    def show(row: Row) -> None:
        if not quiet or row.status == "failed":
            console.print(report.line(row), soft_wrap=True)

    results = run(request, registry, Store(output), reporter, show)
    report.write(results, form)
    failed = sum(row.status == "failed" for row in results.rows)
    if failed:
        console.print(f"[red]{failed} of {len(results.rows)} cells failed[/]; the others are complete.")
    sys.exit(1 if failed else 0)
