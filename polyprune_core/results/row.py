"""One measured cell of a comparison."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from polyprune_core.config.budget_spec import Target
from polyprune_core.errors import BudgetError

COUNTS = (
    "budget_achieved",
    "parameters_kept",
    "nll",
    "eval_tokens",
    "forward_passes",
    "forward_tokens",
    "backward_passes",
    "search_seconds",
    "peak_memory_mb",
    "non_finite_losses",
)
FRACTIONS = ("sparsity", "sparsity_achieved", "parameters_kept_fraction", "top1_agreement")


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


def row_from_json(record: dict[str, Any]) -> Row:
    """Reads one row; what is not finite was written as null and comes back as infinity."""
    if unknown := set(record) - {field.name for field in dataclasses.fields(Row)}:
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    overflowed = [name for name in ("perplexity", "nll") if record.get("status") == "ok" and record[name] is None]
    row: Row = TypeAdapter(Row).validate_python(record | dict.fromkeys(overflowed, math.inf))
    _check(row)
    return row


def _check(row: Row) -> None:
    """Raises ValueError where a row says what no measurement can."""
    if row.status not in ("ok", "failed"):
        raise ValueError(f"its status is {row.status!r}, which is neither ok nor failed")
    for name in (*COUNTS, *FRACTIONS):
        value = getattr(row, name)
        if value is not None and (value < 0 or (name in FRACTIONS and value > 1)):
            raise ValueError(f"its {name} is {value:g}")
    if row.perplexity is not None and row.perplexity <= 0:
        raise ValueError(f"its perplexity is {row.perplexity:g}")
    if row.budget is not None:
        try:
            Target.parse(row.budget)
        except BudgetError as error:
            raise ValueError(str(error)) from error
