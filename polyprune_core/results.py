"""The results of a comparison: rows as measured, a summary over seeds, and the JSON form of both (schema 1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from polyprune_core.statistics import Paired, Sample, paired, sample

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
class Summary:
    """Rows that differ in their seed only; `versus` compares a search with its own starting policy, seed by seed."""

    row: Row
    seeds: tuple[int, ...]
    perplexity: Sample | None
    log_perplexity: Sample | None
    versus: Paired | None
    failed: int


@dataclass(frozen=True)
class Results:
    """Everything a report needs."""

    polyprune: str
    environment: dict[str, Any]
    config: dict[str, Any]
    model: dict[str, Any]
    texts: dict[str, Any]
    rows: list[Row]

    def summaries(self) -> list[Summary]:
        """Groups rows over seeds, in the order in which they first appear."""
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.rows:
            groups.setdefault(_without_seed(row), []).append(row)
        return [_summarise(rows, self.rows) for rows in groups.values()]

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
                "summary": [_summary_json(summary) for summary in self.summaries()],
            }
        )
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Results:
        """Reads what `to_json` gave."""
        names = [f.name for f in dataclasses.fields(cls) if f.name != "rows"]
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


def _without_seed(row: Row) -> tuple[Any, ...]:
    asked = (row.sparsity, row.budget)
    return (row.kind, row.granularity, asked, row.initializer, row.estimator, row.scope, row.scale)


def _start_of(row: Row) -> tuple[Any, ...]:
    return ("start", row.granularity, (row.sparsity, row.budget), row.initializer, None, row.scope, None)


def _summarise(rows: list[Row], everything: Iterable[Row]) -> Summary:
    done = [row for row in rows if row.status == "ok" and row.nll is not None]
    versus = None
    if done and done[0].kind == "search":
        starts = {row.seed: row.nll for row in everything if _without_seed(row) == _start_of(done[0]) and row.nll}
        pairs = [(row.nll, starts[row.seed]) for row in done if row.seed in starts]
        versus = paired(*zip(*pairs, strict=True)) if pairs else None
    return Summary(
        row=_mean_row(done) if done else rows[0],
        seeds=tuple(row.seed for row in done if row.seed is not None),
        perplexity=sample([row.perplexity or math.inf for row in done]) if done else None,
        log_perplexity=sample([row.nll or 0.0 for row in done]) if done else None,
        versus=versus,
        failed=len(rows) - len(done),
    )


def _mean_row(rows: list[Row]) -> Row:
    """The first row with what varies over seeds averaged; peak memory is the highest."""
    means = {
        name: sum(values) / len(values)
        for name in ("sparsity_achieved", "budget_achieved", "kl_to_dense", "top1_agreement", "search_seconds")
        if (values := [value for row in rows if (value := getattr(row, name)) is not None])
    }
    tasks = {task: _mean_scores([row.tasks[task] for row in rows if task in row.tasks]) for task in rows[0].tasks}
    peaks = [row.peak_memory_mb for row in rows if row.peak_memory_mb is not None]
    return dataclasses.replace(rows[0], peak_memory_mb=max(peaks, default=None), tasks=tasks, **means)


def _mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    return {metric: sum(one[metric] for one in scores) / len(scores) for metric in scores[0]}


def _summary_json(summary: Summary) -> dict[str, Any]:
    row, perplexity, versus = summary.row, summary.perplexity, summary.versus
    return {
        "kind": row.kind,
        "granularity": row.granularity,
        "initializer": row.initializer,
        "estimator": row.estimator,
        "sparsity": row.sparsity,
        "budget": row.budget,
        "scope": row.scope,
        "scale": row.scale,
        "n": len(summary.seeds) or int(row.kind == "dense"),
        "failed": summary.failed,
        "perplexity_mean": perplexity and perplexity.mean,
        "perplexity_sd": perplexity and perplexity.sd,
        "ci95": perplexity and perplexity.ci95,
        "tasks": row.tasks,
        "versus": versus
        and {"row": "start", "ratio": versus.ratio, "ci95": versus.ci95, "p": versus.p, "verdict": versus.verdict},
    }
