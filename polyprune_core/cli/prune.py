"""`polyprune prune`: learn or score one mask, cut the model, write it, read it back and measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from polyprune_core.cli.config_file import given
from polyprune_core.cli.options import ENGINE, MODEL, OUTPUT, PLACEMENT, SEARCH, TEXT, options
from polyprune_core.cli.params import UserPath, plugin_names, setting, words

ONE = [
    setting(
        "--initializer",
        metavar="NAME",
        shell_complete=plugin_names("initializer"),
        help="Metric that scores the units, or that a search starts from.",
    ),
    setting(
        "--estimator",
        metavar="NAME",
        shell_complete=plugin_names("estimator"),
        help="Estimator to search with. none takes the metric alone.",
        unless="none",
    ),
    setting(
        "--granularity",
        metavar="NAME",
        shell_complete=plugin_names("granularity"),
        help="What a unit is. + joins kinds that compete for one budget.",
    ),
    setting("--sparsity", "-s", type=float, metavar="X", help="Fraction of prunable parameters removed.", unless="0.2"),
    setting(
        "--budget",
        metavar="X",
        help="What may be kept, in place of --sparsity: bytes=200MB, kv-cache=0.7, latency=0.7, parameters=0.8.",
    ),
    setting(
        "--repair",
        metavar="NAME",
        shell_complete=plugin_names("repair"),
        help="What happens to the weights that stay: none, least-squares, distil or another repair.",
    ),
    setting("--seed", type=int, metavar="N", help="What the calibration sample and the masks are drawn from."),
    setting(
        "--scope",
        metavar="NAME",
        shell_complete=words("auto", "kind", "global", "layer"),
        help="Which units share a budget: kind, global or layer. auto takes what loses least on held-back text.",
        unless="auto; for searches the policy's",
    ),
    setting(
        "--scale",
        metavar="NAME",
        shell_complete=words("auto", "raw", "zscore", "per-parameter"),
        help="How scores compare across layers: raw, zscore or per-parameter. auto as for --scope.",
    ),
    setting(
        "--multiple-of",
        metavar="WIDTHS",
        help="Layers keep multiples of so many units: channel=32 or channel=32,head=2.",
        unless="none",
    ),
    setting(
        "--target",
        metavar="NAME",
        shell_complete=plugin_names("exporter"),
        help="Layers keep widths that an exporter or its runtime can hold: gguf:q8_0, vllm:tp=2, …",
        unless="those of --exporter",
    ),
    setting(
        "--exporter",
        metavar="NAME",
        shell_complete=plugin_names("exporter"),
        help="Form of what is written: huggingface, masks, gguf, onnx, …",
    ),
    setting(
        "--from-masks",
        type=UserPath(),
        metavar="DIR",
        help="Folder of masks to take the decision from. Nothing is scored or searched.",
    ),
]


@click.command()
@options(("Pruning", "Comparison"), ONE, MODEL, TEXT, SEARCH, PLACEMENT, ENGINE, OUTPUT)
@click.option("--output", "-o", type=UserPath(), required=True, help="New folder for the pruned model.")
@click.option("--overwrite", is_flag=True, help="Replace the output folder if it is there.")
def prune(config: Path | None, output: Path, overwrite: bool, quiet: bool, verbose: bool, **values: Any) -> None:
    """Prune one model, write it, and measure what is read back from disk."""
    from polyprune_core.cli.console import opened
    from polyprune_core.config.settings import Pruning

    request, registry, reporter = opened(Pruning, given(values, config), quiet, verbose)

    from polyprune_core.runs.prune import prune as run

    written = run(request, registry, output, overwrite, reporter).written
    assert written is not None
    click.echo("\n".join(written.lines()))
