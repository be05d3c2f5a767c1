"""The chart of a comparison, drawn by matplotlib from the numbers of the report's own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from polyprune_core.errors import ConfigError
from polyprune_core.report.charts import criteria, measured
from polyprune_core.report.sheet import heading
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trade_off(results: Results, axes: Axes | None = None) -> Axes:
    """Draws perplexity against sparsity, a line a criterion: exp of the mean loss over seeds and its 95 % t interval.

    Raises:
        ConfigError: matplotlib is not installed, or nothing finished that could be drawn.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("plot needs matplotlib, which is not installed: pip install 'polyprune[plot]'.") from error
    summaries = results.summaries()
    lines = [line for found in criteria(results, summaries).items() for line in found[1].items()]
    if not lines:
        raise ConfigError("no pruned row has a finite perplexity, so there is nothing to draw.")
    axes = axes or pyplot.subplots(layout="constrained")[1]
    for name, line in lines:
        points = sorted(map(_point, line))
        x, y, below, above = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=(below, above), label=name, marker="o", capsize=3)
    dense = [_point(summary)[1] for summary in measured(summaries) if summary.row.cell.is_reference]
    for level in dense:
        axes.axhline(level, label="dense", color="black", linestyle=":")
    axes.set(
        xlabel="sparsity (fraction of prunable parameters removed)",
        ylabel="perplexity (log scale)",
        yscale="log",
        title=heading(results),
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend()
    return axes


def _point(summary: Summary) -> tuple[float, float, float, float]:
    """Returns sparsity, perplexity and how far its interval reaches below and above; a sparsity asked for, or got."""
    row, found = summary.row, summary.log_perplexity
    assert found is not None
    low, high = found.ci95 or (found.mean, found.mean)
    asked = row.cell.sparsity if row.cell.sparsity is not None else row.sparsity_achieved
    middle = math.exp(found.mean)
    return asked or 0.0, middle, middle - math.exp(low), math.exp(high) - middle
