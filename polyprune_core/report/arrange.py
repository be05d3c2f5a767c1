"""Which rows a report shows, in which order, under which titles."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import COORDINATES
from polyprune_core.errors import BudgetError, ConfigError, plain, unknown_name
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary


def _of(name: str) -> Callable[[Summary], Any]:
    return lambda summary: value_of(summary.row, name)


def value_of(row: Row, key: str) -> Any:
    """Returns a coordinate of the row's cell, or what was measured."""
    return getattr(row.cell if key in COORDINATES else row, key)


def removed(row: Row) -> float | None:
    """Returns the fraction of the prunable parameters that was asked for, or what a budget came to."""
    return row.sparsity_achieved if row.cell.sparsity is None else row.cell.sparsity


def mildest_first(target: BudgetSpec | None) -> tuple[Any, ...]:
    """Sorts targets: none, the sparsities, then each currency's fractions and its amounts."""
    if target is None:
        return (0,)
    if target.sparsity is not None:
        return (1, target.sparsity)
    return (2, target.currency, not target.relative, -target.amount)


SORTS: dict[str, Callable[[Summary], Any]] = {
    "perplexity": lambda summary: summary.perplexity and summary.perplexity.mean,
    "cost": lambda summary: (summary.row.forward_tokens, summary.row.backward_passes),
    "sparsity": lambda summary: removed(summary.row),
    "ratio": lambda summary: summary.versus and summary.versus.ratio,
    "kl": _of("kl_to_dense"),
    "agreement": lambda summary: -(summary.row.top1_agreement or 0),
    "parameters": _of("parameters_kept"),
    "seconds": _of("search_seconds"),
    "memory": _of("peak_memory_mb"),
    "criterion": lambda summary: (summary.row.cell.initializer or "", summary.row.cell.estimator or ""),
}
KEYS = tuple(name for name in COORDINATES if name != "seed")
# One target in two columns: rows grouped by either stand together where the same was asked of them.
TARGET = ("sparsity", "budget")
FILTERS = (*COORDINATES, "status")


@dataclass(frozen=True)
class Arrangement:
    """`sort` and `group_by` are names of SORTS and KEYS or None: as run; `keep` allows values of FILTERS.

    The dense model is the reference of every row: it comes first, and stays unless `keep` names kinds. A choice of
    seeds changes the statistics; every other choice leaves them those of the whole comparison.
    """

    sort: str | None = None
    reverse: bool = False
    group_by: str | None = None
    keep: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of_seeds(self, results: Results) -> Results:
        """Returns the comparison with the seeds that were chosen.

        Raises:
            ConfigError: a value asked for is in no row.
        """
        for key, values in self.keep.items():
            _check(key, values, results.rows)
        seeds = self.keep.get("seed")
        if seeds is None:
            return results
        rows = [row for row in results.rows if row.cell.seed is None or _matches(row, "seed", seeds)]
        return dataclasses.replace(results, rows=rows)

    def rows(self, results: Results) -> list[Row]:
        """Returns the measured rows that are shown, in the order of their summaries."""
        rows = [row for row in self.of_seeds(results).rows if self._shows(row)]
        if self.sort is None and self.group_by is None:
            return rows
        order = [summary.row.cell.without("seed") for _, group in self.groups(results) for summary in group]
        place = {cell: index for index, cell in enumerate(order)}
        return sorted(rows, key=lambda row: place[row.cell.without("seed")])

    def groups(self, results: Results) -> list[tuple[str, list[Summary]]]:
        """Returns the summaries that are shown, in order, in groups with their titles."""
        shown = self._sorted([s for s in self.of_seeds(results).summaries() if self._shows(s.row)])
        if self.group_by is None:
            alike = itertools.groupby(shown, lambda s: None if self.sort else _asked(s.row))
            return [("", list(group)) for _, group in alike]
        groups: dict[Any, list[Summary]] = {}
        if self.group_by in TARGET:
            for summary in sorted(shown, key=lambda s: mildest_first(s.row.cell.target)):
                groups.setdefault(summary.row.cell.target and summary.row.cell.asked, []).append(summary)
            return [(title or "", group) for title, group in groups.items()]
        for summary in shown:
            groups.setdefault(value_of(summary.row, self.group_by), []).append(summary)
        return [("" if value is None else plain(f"{self.group_by} {value}"), group) for value, group in groups.items()]

    def _sorted(self, summaries: list[Summary]) -> list[Summary]:
        if self.sort is None:
            return summaries
        value = SORTS[self.sort]
        known = [s for s in summaries if s.row.cell.kind != "dense" and value(s) is not None]
        known.sort(key=lambda summary: value(summary), reverse=self.reverse)
        return [
            *(summary for summary in summaries if summary.row.cell.kind == "dense"),
            *known,
            *(summary for summary in summaries if summary.row.cell.kind != "dense" and value(summary) is None),
        ]

    def _shows(self, row: Row) -> bool:
        if row.cell.kind == "dense" and "kind" not in self.keep:
            return True
        return all(_matches(row, key, values) for key, values in self.keep.items() if key != "seed")


AS_RUN = Arrangement()


def _asked(row: Row) -> tuple[Any, ...]:
    return (row.cell.granularity, row.cell.target)


def _matches(row: Row, key: str, allowed: Sequence[str]) -> bool:
    return any(_has(row, key, text) for text in allowed)


def _has(row: Row, key: str, text: str) -> bool:
    value = value_of(row, key)
    if key == "budget":
        with suppress(BudgetError):
            return str(row.cell.target) == str(BudgetSpec.parse(text))
    if isinstance(value, (int, float)):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value).lower() == text.strip().lower()


def _check(key: str, values: Sequence[str], rows: Sequence[Row]) -> None:
    if key not in FILTERS:
        raise ConfigError(unknown_name("filter", key, FILTERS))
    for text in values:
        if not any(_has(row, key, text) for row in rows):
            there = {plain(str(value)) for row in rows if (value := value_of(row, key)) is not None}
            raise ConfigError(unknown_name(f"{key} in these results", text, there))
