"""A dot plot: the perplexities of many criteria at one sparsity, where a line against sparsity has nothing to join."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyprune_core.report.charts import Tick, at_one_place, criteria, log_ticks, measured
from polyprune_core.report.columns import number, perplexity
from polyprune_core.report.naming import label, varied
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary

MARGIN = 4.0  # per cent of the axis


@dataclass(frozen=True)
class Dot:
    """One criterion: where its mean and the ends of its interval (or None) stand, in per cent of the axis."""

    name: str
    text: str
    at: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Dots:
    """A dot plot, the lowest perplexity first; `level` is where the dense model stands, in per cent of the axis."""

    title: str
    dots: tuple[Dot, ...]
    ticks: tuple[Tick, ...]
    level: float | None


def dot_plots(results: Results, summaries: Sequence[Summary]) -> list[Dots]:
    """Returns one plot for each granularity whose rows all have one sparsity; intervals are t intervals of the log."""
    dense = next((s for s in measured(summaries) if s.row.cell.is_reference), None)
    found = {
        granularity: [summary for line in lines.values() for summary in line]
        for granularity, lines in criteria(results, summaries).items()
    }
    return [
        _plot(granularity, shown, dense, varied(results)) for granularity, shown in found.items() if at_one_place(shown)
    ]


def _plot(granularity: str, shown: list[Summary], dense: Summary | None, differs: frozenset[str]) -> Dots:
    ends = [end for s in [*shown, *([dense] if dense else [])] for end in _reach(s)]
    low, high = min(ends), max(ends)

    def place(value: float) -> float:
        return round(MARGIN + (100 - 2 * MARGIN) * (value - low) / ((high - low) or 1.0), 2)

    return Dots(
        title=f"Perplexity, {granularity}, {shown[0].row.cell.asked}",
        dots=tuple(
            Dot(label(s.row, differs), perplexity(s), place(_mean(s)), *_ends(s, place))
            for s in sorted(shown, key=_mean)
        ),
        ticks=tuple(Tick(place(math.log(value)), number(value, 0)) for value in log_ticks(low, high)),
        level=place(_mean(dense)) if dense else None,
    )


def _mean(summary: Summary) -> float:
    return summary.log_perplexity.mean if summary.log_perplexity else math.nan


def _interval(summary: Summary) -> tuple[float, float] | None:
    """Returns the interval as far as it helps to read the plot: of two seeds it may span any number of decades."""
    found = summary.log_perplexity
    if not found or not found.ci95:
        return None
    return max(found.ci95[0], found.mean - 1.0), min(found.ci95[1], found.mean + 1.0)


def _reach(summary: Summary) -> tuple[float, ...]:
    return (_mean(summary), *(_interval(summary) or ()))


def _ends(summary: Summary, place: Callable[[float], float]) -> tuple[float | None, float | None]:
    interval = _interval(summary)
    return (place(interval[0]), place(interval[1])) if interval else (None, None)
