"""The results of a comparison: rows as measured, and their JSON form with the summary over seeds (schema 1)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from polyprune_core.results.summaries import Summary, summarise

if TYPE_CHECKING:
    from polyprune_core.results.cell_file import Details

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """One measured cell. Perplexity over `eval_tokens` predicted tokens; nll and kl_to_dense in nats per token.

    `budget` is asked instead of `sparsity`, and `budget_achieved` is in the same terms. `tasks` holds the metrics of
    each task, and their standard errors over its items as METRIC_stderr.
    """

    id: str
    kind: str
    granularity: str | None = None
    initializer: str | None = None
    estimator: str | None = None
    sparsity: float | None = None
    budget: str | None = None
    seed: int | None = None
    scope: str | None = None
    scale: str | None = None
    sparsity_achieved: float | None = None
    budget_achieved: float | None = None
    parameters_kept: int | None = None
    parameters_kept_fraction: float | None = None
    perplexity: float | None = None
    nll: float | None = None
    eval_tokens: int | None = None
    kl_to_dense: float | None = None
    top1_agreement: float | None = None
    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0
    search_seconds: float = 0.0
    peak_memory_mb: float | None = None
    non_finite_losses: int = 0
    status: str = "ok"
    error: str | None = None
    tasks: dict[str, dict[str, float]] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """A comparison: what ran on what, its rows, and by row id what their cells hold beside them."""

    polyprune: str
    environment: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    texts: dict[str, Any]
    rows: list[Row]
    details: dict[str, Details] = field(default_factory=dict, repr=False, compare=False)

    def summaries(self) -> list[Summary]:
        """Groups rows over seeds, in the order in which they first appear."""
        return list(self._summaries)

    @cached_property
    def _summaries(self) -> list[Summary]:
        return summarise(self.rows, {key: found.window_nll for key, found in self.details.items()})

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; a number that is not finite becomes null."""
        record: dict[str, Any] = finite(
            {
                "schema": SCHEMA,
                "polyprune": self.polyprune,
                "environment": self.environment,
                "config": self.config,
                "model": self.model,
                "texts": self.texts,
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "summary": [summary.to_json() for summary in self.summaries()],
            }
        )
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Results:
        """Reads what `to_json` gave."""
        names = [f.name for f in dataclasses.fields(cls) if f.name not in ("rows", "details")]
        return cls(**{name: record[name] for name in names}, rows=[row_from_json(row) for row in record["rows"]])


def row_from_json(record: dict[str, Any]) -> Row:
    """Reads one row; what is not finite was written as null and comes back as infinity."""
    if unknown := set(record) - {field.name for field in dataclasses.fields(Row)}:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    overflowed = [name for name in ("perplexity", "nll") if record.get("status") == "ok" and record[name] is None]
    row: Row = TypeAdapter(Row).validate_python(record | dict.fromkeys(overflowed, math.inf))
    return row


def finite(value: Any) -> Any:
    """Returns the value with every non-finite float, at any depth, as None: JSON has no infinity."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
