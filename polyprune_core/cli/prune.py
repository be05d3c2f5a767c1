"""`polyprune prune`: learn or score one mask, cut the model, write it, read it back and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.cli.options import ENGINE, MODEL, OUTPUT, PLACEMENT, SEARCH, TEXT, given, options
from polyprune_core.cli.params import UserPath, plugin_names, setting, words

ONE = [
    setting(
        "--initializer",
        metavar="NAME",
        shell_complete=plugin_names("initializer"),
        help="Metric, or where a search starts.",
    ),
    setting(
        "--estimator",
        metavar="NAME",
        shell_complete=plugin_names("estimator"),
        help="Search with this gradient estimator; none: the metric alone.",
        unless="none",
    ),
    setting(
        "--granularity",
        metavar="NAME",
        shell_complete=plugin_names("granularity"),
        help="What a unit is.",
    ),
    setting("--sparsity", "-s", type=float, metavar="X", help="Fraction of prunable parameters removed.", unless="0.2"),
    setting(
        "--budget",
        metavar="X",
        help="Instead: what may be kept, as bytes=200MB, kv-cache=0.7, latency=0.7 or parameters=0.8.",
    ),
    setting(
        "--repair",
        metavar="NAME",
        shell_complete=plugin_names("repair"),
        help="What happens to the weights that stay: none, least-squares, distil or another repair.",
    ),
    setting("--seed", type=int, metavar="N", help="Calibration sample and masks."),
    setting(
        "--scope",
        metavar="NAME",
        shell_complete=words("auto", "kind", "global", "layer"),
        help="Who shares a budget: auto (by loss on text held back), kind, global or layer.",
        unless="auto; for searches the policy's",
    ),
    setting(
        "--scale",
        metavar="NAME",
        shell_complete=words("auto", "raw", "zscore", "per-parameter"),
        help="Scores compared across layers: auto (by loss on text held back), raw, zscore or per-parameter.",
    ),
    setting(
        "--multiple-of",
        metavar="WIDTHS",
        help="Widths of layers, as channel=32 or channel=32,head=2.",
        unless="none",
    ),
    setting(
        "--target",
        metavar="NAME",
        shell_complete=plugin_names("exporter"),
        help="Widths that an exporter or its runtime holds: gguf:q8_0, vllm:tp=2, …",
        unless="those of --exporter",
    ),
    setting(
        "--exporter",
        metavar="NAME",
        shell_complete=plugin_names("exporter"),
        help="What to write: huggingface, masks, …",
    ),
    setting(
        "--from-masks",
        type=UserPath(),
        metavar="DIR",
        help="Reuse the scores of a masks export; nothing is learned anew.",
    ),
]


@click.command()
@options(("Pruning", "Comparison"), ONE, MODEL, TEXT, SEARCH, PLACEMENT, ENGINE, OUTPUT)
@click.option("--output", "-o", type=UserPath(), required=True, help="New folder for the pruned model.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
def prune(config: Path | None, output: Path, overwrite: bool, quiet: bool, verbose: bool, **values: Any) -> None:
    """Prune one model for good, and prove it by reading it back from disk."""
    from polyprune_core.cli.console import opened
    from polyprune_core.config.settings import Pruning

    request, registry, reporter = opened(Pruning, given(values, config), quiet, verbose)

    from polyprune_core.runs.prune import prune as run

    written = run(request, registry, output, overwrite, reporter).written
    assert written is not None
    click.echo("\n".join(written.lines()))
