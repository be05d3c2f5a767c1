"""The searches step by step: loss against forward tokens, read from the traces beside the cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyprune_core.errors import ConfigError
from polyprune_core.report.naming import label, section, varied
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary
from polyprune_core.results.trace_file import read_trace

POINTS = 100
SMOOTHING = 0.1
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """Points (forward tokens, loss in nats per token) of one search: the mean over seeds, and each seed."""

    name: str
    mean: Points
    seeds: tuple[Points, ...]


def curves(results: Results, summaries: Iterable[Summary], folders: Sequence[Path]) -> dict[str, list[Curve]]:
    """Returns the curves by what searches have in common: granularity, budget and starting metric.

    A loss is the mean over a step's masks, smoothed by a running mean over a tenth of the steps.
    """
    found: dict[str, list[Curve]] = {}
    differs = varied(results)
    for summary in summaries:
        seeds = tuple(points for row in summary.rows if (points := _trace(row.id, folders)))
        if summary.row.cell.kind != "search" or not seeds:
            continue
        length = min(map(len, seeds))
        mean = [(seeds[0][i][0], sum(s[i][1] for s in seeds) / len(seeds)) for i in range(length)]
        title = f"{section(summary.row)}, from {summary.row.cell.initializer}"
        curve = Curve(label(summary.row, differs), _thinned(mean), tuple(map(_thinned, seeds)))
        found.setdefault(title, []).append(curve)
    return found


def _trace(key: str, folders: Sequence[Path]) -> Points:
    for folder in folders:
        try:
            steps = [(float(s["forward_tokens"]), float(np.mean(s["losses"]))) for s in read_trace(folder, key)]
        except (ConfigError, ValueError, KeyError, TypeError):  # told of where the store was read
            continue
        if not steps:
            continue
        return _smoothed([(tokens, loss) for tokens, loss in steps if math.isfinite(loss)])
    return []


def _smoothed(points: Points) -> Points:
    width = max(1, round(len(points) * SMOOTHING))
    losses = [loss for _, loss in points]
    return [(points[end - 1][0], sum(losses[end - width : end]) / width) for end in range(width, len(points) + 1)]


def _thinned(points: Points) -> Points:
    stride = -(-len(points) // POINTS) or 1
    return points[::stride]
