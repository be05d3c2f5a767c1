"""`polyprune compare`: a grid of criteria through one harness, one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import EXECUTION, MODEL, OUTPUT, SEARCH, TASKS, TEXT, TRACKING, options
from polyprune_core.cli.params import CommaList, UserPath, WidthsList, plugin_names, setting, words

if TYPE_CHECKING:
    from rich.console import Console

    from polyprune_core.config.settings import Comparison
    from polyprune_core.plugins.registry import Registry
    from polyprune_core.results.results import Results
    from polyprune_core.results.store import Store

# Of what runs at the same time, the lines that a terminal shows.
MOST_SHOWN = 4
GRID = [
    setting(
        "--estimators",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("estimator"),
        help="Searches: reinforce, rloo, antithetic, …",
    ),
    setting(
        "--initializers",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("initializer"),
        help="Metrics that searches start from.",
    ),
    setting(
        "--baselines",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("initializer"),
        help="Metrics without a search. all takes every metric that can score the units.",
    ),
    setting(
        "--granularity",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("granularity"),
        help="What a unit is. + joins kinds that compete for one budget.",
    ),
    setting("--sparsity", "-s", type=CommaList(float), metavar="LIST", help="Fraction of prunable parameters removed."),
    setting(
        "--budget",
        type=CommaList(),
        metavar="LIST",
        help="What may be kept, in place of --sparsity: bytes=200MB, kv-cache=0.7, latency=0.7, parameters=0.8.",
    ),
    setting(
        "--repair",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("repair"),
        help="What happens to the weights that stay: none, least-squares, distil or another repair.",
    ),
    setting(
        "--seeds", type=CommaList(int), metavar="LIST", help="Seeds. Each draws its own calibration sample and masks."
    ),
    setting(
        "--scope",
        type=CommaList(),
        metavar="LIST",
        shell_complete=words("auto", "kind", "global", "layer"),
        help="Which units share a budget: kind, global or layer. auto takes what loses least on held-back text.",
        unless="auto; for searches the policy's",
    ),
    setting(
        "--scale",
        type=CommaList(),
        metavar="LIST",
        shell_complete=words("auto", "raw", "zscore", "per-parameter"),
        help="How scores compare across layers: raw, zscore or per-parameter. auto as for --scope.",
    ),
    setting(
        "--multiple-of",
        type=WidthsList(),
        metavar="LIST",
        help="Layers keep multiples of so many units: channel=32 or channel=32,head=2. / stands between alternatives.",
        unless="none",
    ),
    setting(
        "--target",
        type=CommaList(),
        metavar="LIST",
        shell_complete=plugin_names("exporter"),
        help="Layers keep widths that an exporter or its runtime can hold: gguf:q8_0, vllm:tp=2, …",
        unless="none",
    ),
]


@click.command()
@options(("Comparison",), GRID, MODEL, TEXT, TASKS, SEARCH, EXECUTION, TRACKING, OUTPUT)
@click.option(
    "--output",
    "-o",
    type=UserPath(),
    default=Path("polyprune-runs"),
    show_default=True,
    help="Folder for the results. Cells that are finished in it are not run again.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv", "markdown", "latex"]),
    default="table",
    show_default=True,
    help="What is printed.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Print the cells, their cost and what is finished; run nothing.")
def compare(
    config: Path | None, output: Path, form: str, dry_run: bool, quiet: bool, verbose: bool, **values: Any
) -> None:
    """Compare pruning criteria on one model.

    The table has the dense model, each metric alone and each search. Options of a plugin follow its name:
    llm-pruner:taylor=vector.
    """
    from rich.markup import escape

    from polyprune_core.cli.console import check_loudness, show_problems, stderr
    from polyprune_core.config.parsing import parse
    from polyprune_core.config.settings import Comparison
    from polyprune_core.plugins.registry import load_registry
    from polyprune_core.runs.loggers import check_loggers
    from polyprune_core.runs.preflight import ALL, applicable, settled

    check_loudness(quiet, verbose)
    console = stderr()
    request = parse(Comparison, *given(values, config))
    check_loggers(request.report_to)
    registry = load_registry()
    show_problems(registry, console, verbose)
    others = applicable(request, registry)[1] if ALL in request.baselines else []
    if others:
        console.print(f"left out of all, as they score other units: {', '.join(others)}", soft_wrap=True)
    request = settled(request, registry)
    if dry_run:
        from polyprune_core.cli import dryrun
        from polyprune_core.runs.dry_run import plan

        dryrun.check_format(form)
        dryrun.write(plan(request, registry, output), form, _varied(request))
        return
    from polyprune_core.results.store import Store

    store = Store(output)
    results = _run(request, registry, store, console, quiet, verbose)

    from polyprune_core import report

    report.write(results, form)
    failed = sum(row.status == "failed" for row in results.rows)
    if failed:
        console.print(f"[red]{failed} of {len(results.rows)} cells failed[/]; the others are complete.")
    for path in store.unwritten:
        console.print(f"[red]not written:[/] {escape(str(path))}", soft_wrap=True)
    sys.exit(1 if failed or store.unwritten else 0)


def _run(
    request: Comparison, registry: Registry, store: Store, console: Console, quiet: bool, verbose: bool
) -> Results:
    """Runs the grid below a live view on a terminal, with a line a cell elsewhere."""
    from polyprune_core.cli.live import GridView, PlainView
    from polyprune_core.runs.cost_estimate import evaluation_tokens, work_of
    from polyprune_core.runs.grid import run_grid
    from polyprune_core.runs.preflight import check_plugins

    check_plugins(request, registry)
    work = work_of(request, registry, evaluation_tokens(request) or 1)
    varied, at_once = _varied(request), request.workers or (1 if request.executor == "local" else MOST_SHOWN)
    view: PlainView = (
        GridView(console, work, varied, quiet, verbose, min(at_once, MOST_SHOWN))
        if console.is_terminal and not quiet
        else PlainView(console, work, varied, quiet, verbose)
    )
    with view:
        try:
            return run_grid(request, registry, store, view, view.row)
        except KeyboardInterrupt:
            raise click.Abort("finished cells are kept, and the same command goes on from there") from None


def _varied(request: Comparison) -> frozenset[str]:
    """Returns the settings that tell rows of this grid apart."""
    from polyprune_core.config.grid import cells
    from polyprune_core.report.naming import told_apart

    return told_apart(cells(request))
