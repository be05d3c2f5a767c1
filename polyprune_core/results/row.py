"""One measured cell of a comparison."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from polyprune_core.config.cell import COORDINATES, AnyCell, cell_from_json
from polyprune_core.utils.numbers import exp

ROUNDING = 1e-6
COUNTS = (
    "budget_achieved",
    "parameters_kept",
    "active_parameters",
    "nll",
    "eval_tokens",
    "forward_passes",
    "forward_tokens",
    "backward_passes",
    "search_seconds",
    "peak_memory_mb",
    "non_finite_losses",
)
FRACTIONS = ("sparsity_achieved", "parameters_kept_fraction", "top1_agreement")


@dataclass(frozen=True)
class TextScores:
    """What a model scores on one text in windows of `seq_len` tokens, over `tokens` predicted ones.

    nll, kl_to_dense and `excess`, the nll above the dense model's, in nats per token; None where no dense model ran.
    """

    text: str
    seq_len: int
    perplexity: float | None
    nll: float | None
    tokens: int
    kl_to_dense: float | None = None
    top1_agreement: float | None = None
    excess: float | None = None

    @property
    def place(self) -> tuple[str, int]:
        """What tells it from the row's others."""
        return self.text, self.seq_len


@dataclass(frozen=True)
class Row:
    """One measured cell. Perplexity over `eval_tokens` predicted tokens; nll and kl_to_dense in nats per token.

    `evaluations` has what was measured on every text at every length. The first is the headline, whose numbers are the
    row's own, and decide every statistic and verdict.
    `budget_achieved` is in the terms of the cell's budget, where that is not a sparsity. `tasks` holds the metrics of
    each task, and their standard errors over its items as METRIC_stderr. `scope_chosen` and `scale_chosen` are those of
    a metric whose cell asks for `auto`. `active_parameters` are those that run for one token, where that is not all.
    """

    id: str
    cell: AnyCell
    sparsity_achieved: float | None = None
    budget_achieved: float | None = None
    parameters_kept: int | None = None
    parameters_kept_fraction: float | None = None
    active_parameters: int | None = None
    perplexity: float | None = None
    nll: float | None = None
    eval_tokens: int | None = None
    kl_to_dense: float | None = None
    top1_agreement: float | None = None
    evaluations: tuple[TextScores, ...] = ()
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
    scope_chosen: str | None = None
    scale_chosen: str | None = None

    @property
    def pooling(self) -> dict[str, str]:
        """The scope and the scale that units were selected in, as far as the cell has them."""
        asked = {"scope": self.cell.scope, "scale": self.cell.scale}
        taken = {"scope": self.scope_chosen or asked["scope"], "scale": self.scale_chosen or asked["scale"]}
        return {name: value for name, value in taken.items() if value}

    def to_json(self) -> dict[str, Any]:
        """Returns the row as one flat record: its id, the cell's columns, what was measured."""
        measured = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)[2:]}
        measured["evaluations"] = [dataclasses.asdict(each) for each in self.evaluations]
        return {"id": self.id, **self.cell.model_dump(mode="json"), **copy.deepcopy(measured)}


def columns_of_row() -> tuple[str, ...]:
    """Returns the names of a row's columns in order: its id, the cell's, what was measured."""
    return ("id", *COORDINATES, *(each.name for each in dataclasses.fields(Row)[2:]))


def row_from_json(record: dict[str, Any]) -> Row:
    """Reads what `to_json` gave; what is not finite was written as null and comes back as infinity.

    Raises:
        ValueError: it is no row.
    """
    if unknown := set(record) - set(columns_of_row()):
        raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
    measured = {name: value for name, value in record.items() if name not in COORDINATES}
    if record.get("status", "ok") == "ok":
        measured |= _infinite(record)
        measured["evaluations"] = [each | _infinite(each) for each in record.get("evaluations", ())]
    row: Row = TypeAdapter(Row).validate_python({"cell": cell_from_json(record), **measured})
    for reason in _of_each(row):
        raise ValueError(reason)
    return row


def _infinite(record: dict[str, Any]) -> dict[str, Any]:
    return {name: math.inf for name in ("perplexity", "nll") if name in record and record[name] is None}


def impossible(row: Row) -> Iterator[str]:
    """Yields why a row says what no measurement can, of each figure and of those that go together."""
    yield from _of_each(row)
    if row.forward_tokens < row.forward_passes or (row.forward_tokens and not row.forward_passes):
        yield f"its {row.forward_passes} forward_passes have {row.forward_tokens} forward_tokens"
    if row.backward_passes > row.forward_passes:
        yield f"its {row.backward_passes} backward_passes are more than its {row.forward_passes} forward_passes"
    if row.perplexity is not None and row.nll is not None and not math.isclose(row.perplexity, exp(row.nll)):
        yield f"its perplexity is {row.perplexity:g} where exp(nll) is {exp(row.nll):g}"
    if row.evaluations and (row.evaluations[0].nll, row.evaluations[0].tokens) != (row.nll, row.eval_tokens):
        yield "its first evaluation is not the one of its own numbers"


def _of_each(row: Row) -> Iterator[str]:
    if row.status not in ("ok", "failed"):
        yield f"its status is {row.status!r}, which is neither ok nor failed"
    for name in (*COUNTS, *FRACTIONS):
        value = getattr(row, name)
        if value is not None and (value < 0 or (name in FRACTIONS and value > 1)):
            yield f"its {name} is {value:g}"
    if row.perplexity is not None and row.perplexity <= 0:
        yield f"its perplexity is {row.perplexity:g}"
    asked, achieved = row.cell.sparsity, row.sparsity_achieved
    if asked is not None and achieved is not None and achieved < asked - ROUNDING:
        yield f"its sparsity_achieved is {achieved:g}, less than the {asked:g} asked"
