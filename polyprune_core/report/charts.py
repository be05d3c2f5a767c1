"""Geometry of the charts; the page's template draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.errors import counted
from polyprune_core.report.arrange import mildest_first, removed
from polyprune_core.report.columns import number, perplexity, short
from polyprune_core.report.curves import Curve
from polyprune_core.report.naming import criterion, label, varied
from polyprune_core.report.sheet import Band, Cell, Sheet
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary

WIDTH, HEIGHT = 480, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 44
DODGE = 3.0
COLOURS, MARKERS = 7, 6
NICE = (1, 2, 2.5, 5, 10)
QUARTERS = (0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Tick:
    """A place on an axis in pixels, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A measured point in pixels, its interval's ends (or None), and what it says."""

    x: float
    y: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class Series:
    """A line: `style` counts the names of the page, so that each looks alike everywhere; `faint` lines lie behind."""

    name: str
    style: int
    line: str
    marks: tuple[Mark, ...] = ()
    faint: tuple[str, ...] = ()

    @property
    def colour(self) -> int:
        """Which of the colours."""
        return self.style % COLOURS

    @property
    def marker(self) -> int:
        """Which of the marker shapes."""
        return self.style % MARKERS

    @property
    def filled(self) -> bool:
        """Whether the marker is filled: so are those that come after all pairs of a colour and a shape."""
        return self.style // (COLOURS * MARKERS) % 2 == 1


@dataclass(frozen=True)
class Chart:
    """A chart of WIDTH by HEIGHT pixels, and its numbers; `level` is a horizontal line of reference."""

    title: str
    about: str
    x_title: str
    y_title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    numbers: Sheet
    level: Tick | None = None


def trade_offs(results: Results, summaries: Sequence[Summary], styles: dict[str, int]) -> list[Chart]:
    """Returns perplexity against sparsity, one chart a granularity; intervals are t intervals of log-perplexity.

    A row of a budget stands at the sparsity that it came to; one that does not say which is left out. A granularity
    whose rows all have one sparsity has a dot plot instead.
    """
    dense = next((s for s in measured(summaries) if s.row.cell.is_reference), None)
    lines = {
        granularity: found
        for granularity, found in criteria(results, summaries).items()
        if not at_one_place([summary for line in found.values() for summary in line])
    }
    return [_trade_off(granularity, found, dense, styles) for granularity, found in lines.items()]


def at_one_place(summaries: Sequence[Summary]) -> bool:
    """Whether all rows were asked for one sparsity, so that a line against sparsity has nothing to join."""
    return len({s.row.cell.target for s in summaries}) == 1


def measured(summaries: Sequence[Summary]) -> list[Summary]:
    """Returns those whose mean perplexity is finite."""
    return [s for s in summaries if s.log_perplexity and math.isfinite(s.log_perplexity.mean)]


def criteria(results: Results, summaries: Sequence[Summary]) -> dict[str, dict[str, list[Summary]]]:
    """Returns of each granularity what a chart has a line for: the measured summaries of each criterion.

    A pooling that was chosen may be another at every sparsity, so a criterion's line does not go by it.
    """
    differs = varied(results)
    found: dict[str, dict[str, list[Summary]]] = {}
    for summary in measured(summaries):
        granularity = summary.row.cell.granularity
        if granularity and removed(summary.row) is not None:
            found.setdefault(granularity, {}).setdefault(criterion(summary.row, differs), []).append(summary)
    return found


def _trade_off(
    granularity: str, lines: dict[str, list[Summary]], dense: Summary | None, styles: dict[str, int]
) -> Chart:
    shown = [summary for line in lines.values() for summary in line]
    logs = [_log(s) for s in [*shown, *([dense] if dense else [])]]
    asked = {s.row.cell.target: s.row.cell.asked for s in sorted(shown, key=lambda s: mildest_first(s.row.cell.target))}
    budgets = {s.row.cell.budget for s in shown} - {None}
    places = sorted({_sparsity(s) for s in shown})
    edge = (places[-1] - places[0]) * 0.12 or 0.05
    first, last = places[0] - edge, places[-1] + edge
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    low, high = _padded(min(logs), max(logs))
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    series = []
    for index, (name, line) in enumerate(lines.items()):
        shift = (index - (len(lines) - 1) / 2) * DODGE
        marks: dict[str, list[Mark]] = {}
        for s in sorted(line, key=_sparsity):
            marks.setdefault(_currency(s), []).append(_mark(s, x(_sparsity(s)) + shift, y))
        path = "".join(_path([(mark.x, mark.y) for mark in joined]) for joined in marks.values())
        series.append(Series(name, styles[name], path, tuple(mark for joined in marks.values() for mark in joined)))
    return Chart(
        title=f"Perplexity against sparsity, {granularity}",
        about=_about(len(series), len(asked), len(budgets)),
        x_title="sparsity (fraction of prunable parameters removed)",
        y_title="perplexity (log scale)",
        x_ticks=tuple(Tick(x(value), f"{value:g}") for value in (ticks(max(first, 0), last) if budgets else places)),
        y_ticks=tuple(Tick(y(math.log(value)), _power(value)) for value in log_ticks(low, high)),
        series=tuple(series),
        numbers=_trade_off_numbers(lines, asked),
        level=Tick(y(_log(dense)), "dense") if dense else None,
    )


def _about(criteria: int, targets: int, budgets: int) -> str:
    criterion = counted(criteria, "criterion", "criteria")
    if not budgets:
        return f"{criterion} at {counted(targets, 'sparsity', 'sparsities')}."
    sparsities = [counted(targets - budgets, "sparsity", "sparsities")] if targets > budgets else []
    at = [*sparsities, counted(budgets, "budget")]
    return (
        f"{criterion} at {' and '.join(at)}. A budget stands at the sparsity that it came to; "
        "a line joins points of one currency."
    )


def _trade_off_numbers(lines: dict[str, list[Summary]], asked: Mapping[BudgetSpec | None, str]) -> Sheet:
    rows = []
    for name, line in lines.items():
        at = {summary.row.cell.target: summary for summary in line}
        rows.append((Cell(name), *(Cell(perplexity(at[target]) if target in at else "") for target in asked)))
    head = ("criterion", *asked.values())
    return Sheet("mean ± sd over seeds", head, (Band("", tuple(rows)),), "")


def _mark(summary: Summary, x: float, y: Callable[[float], float]) -> Mark:
    found = summary.log_perplexity
    interval = found.ci95 if found else None
    low, high = (min(max(y(end), TOP), HEIGHT - BOTTOM) for end in interval) if interval else (None, None)
    mean = summary.perplexity.mean if summary.perplexity else math.nan
    came_to = f" (sparsity {_sparsity(summary):.3f})" if summary.row.cell.budget else ""
    text = f"{label(summary.row)}: {number(mean)} at {summary.row.cell.asked}{came_to}, n {len(summary.rows)}"
    return Mark(round(x, 1), round(y(_log(summary)), 1), low, high, text)


def searches(title: str, lines: Sequence[Curve], styles: dict[str, int]) -> Chart:
    """Returns loss against forward tokens of searches that have the same start."""
    points = [point for curve in lines for path in (curve.mean, *curve.seeds) for point in path]
    x = _scale(0, max(tokens for tokens, _ in points), LEFT, WIDTH - RIGHT)
    low, high = _padded(min(loss for _, loss in points), max(loss for _, loss in points))
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)

    def path(places: Sequence[tuple[float, float]]) -> str:
        return _path([(x(tokens), y(loss)) for tokens, loss in places])

    return Chart(
        title=f"Search: {title}",
        about=f"{counted(len(lines), 'search', 'searches')}; bold: mean over seeds, thin: each seed.",
        x_title="forward tokens of the search",
        y_title="loss (nats per token)",
        x_ticks=tuple(Tick(x(value), short(int(value)) or "0") for value in ticks(0, max(p[0] for p in points))),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in ticks(low, high)),
        series=tuple(
            Series(curve.name, styles[curve.name], path(curve.mean), faint=tuple(map(path, curve.seeds)))
            for curve in lines
        ),
        numbers=_search_numbers(lines),
    )


def _search_numbers(lines: Sequence[Curve]) -> Sheet:
    rows = []
    for curve in lines:
        places = [round(part * (len(curve.mean) - 1)) for part in QUARTERS]
        rows.append((Cell(curve.name), *(Cell(f"{curve.mean[place][1]:.3f}") for place in places)))
    head = ("search", "first", *(f"after {part:.0%}" for part in QUARTERS[1:-1]), "last")
    return Sheet("loss, mean over seeds", head, (Band("", tuple(rows)),), "")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers from low to high."""
    rough = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in NICE if nice * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers whose logarithms lie from low to high: powers of ten, their 2 and 5, or any round ones."""
    if high - low < math.log(8):
        return ticks(math.exp(low), math.exp(high))
    powers = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    steps = (1, 2, 5) if high - low < 3 * math.log(10) else (1,)
    found = [lead * 10.0**power for power in powers for lead in steps]
    return [value for value in found if low <= math.log(value) <= high]


def _log(summary: Summary) -> float:
    return summary.log_perplexity.mean if summary.log_perplexity else math.nan


def _sparsity(summary: Summary) -> float:
    return removed(summary.row) or 0.0


def _currency(summary: Summary) -> str:
    return summary.row.cell.target.currency if summary.row.cell.target else ""


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.08 or 0.1
    return low - pad, high + pad


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if points else ""


def _power(value: float) -> str:
    return f"{value:,.0f}" if 1 <= value < 10_000 else number(value, 0)
