"""The published JSON Schema of results, made from the types that results are read with.

python -m polyprune_core.results.schema > polyprune_core/results/results.schema.json
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from dataclasses import MISSING, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, create_model

from polyprune_core.config.cell import COORDINATES, Cell
from polyprune_core.results.row import Row

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "results.schema.json"


@dataclass(frozen=True)
class ModelRecord:
    """The dense model; `parameters` counts all, `prunable_parameters` those of each granularity.

    `sha256` is that of its weights, `source` says where they come from.
    """

    name: str
    dtype: str
    device: str
    parameters: int
    prunable_parameters: dict[str, int]
    sha256: str | None = None
    source: str | None = None
    weights_mb: float | None = None


@dataclass(frozen=True)
class TextRecord:
    """A text in one role, cut into windows of tokens; `bos` is what every window begins with, if anything.

    `overlap` is the share of what is evaluated on that is in the text calibrated on too.
    """

    name: str
    sha256: str
    windows: int
    tokens_per_window: int
    bos: str | None = None
    overlap: float | None = None


@dataclass(frozen=True)
class TextsRecord:
    """What is calibrated on, and the headline of what is evaluated on; where there are several, all `evaluations`."""

    calibration: TextRecord
    evaluation: TextRecord
    evaluations: list[TextRecord] | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """95 % interval of a ratio over windows of text."""

    windows: int
    ci95: tuple[float | None, float | None]


@dataclass(frozen=True)
class TextScoresSummary:
    """Rows that differ in their seed only, on one text at one length: means over seeds.

    `excess` is in nats over the dense model, and `share` its fraction of that of the best metric without repair.
    """

    text: str
    seq_len: int
    perplexity_mean: float | None
    perplexity_sd: float | None
    kl_to_dense: float | None
    top1_agreement: float | None
    excess: float | None
    share: float | None


@dataclass(frozen=True)
class VersusRecord:
    """A perplexity ratio to the row's own start, paired by seed."""

    row: Literal["start"]
    ratio: float | None
    ci95: tuple[float | None, float | None] | None
    p: float | None
    verdict: str
    q: float | None = None
    evaluation: EvaluationRecord | None = None


@dataclass(frozen=True)
class Summarised:
    """What a summary says beside its cell; `n` rows that differ in their seed only were measured, `failed` were not."""

    n: int
    failed: int
    perplexity_mean: float | None
    perplexity_sd: float | None
    ci95: tuple[float | None, float | None] | None
    versus: VersusRecord | None
    tasks: dict[str, dict[str, float]] | None = None
    evaluations: list[TextScoresSummary] | None = None
    best: bool | None = None
    pareto: list[str] | None = None


def _flat(name: str, about: str, measured: Any, without: tuple[str, ...] = ()) -> Any:
    """Returns the type of a flat record: a cell's columns, then the fields of a dataclass."""
    cell = {column: Cell.model_fields.get(column) for column in COORDINATES if column not in without}
    columns: dict[str, Any] = {name: (each.annotation if each else TARGET[name], None) for name, each in cell.items()}
    columns["kind"] = (Cell.model_fields["kind"].annotation, ...)
    hints = get_type_hints(measured)
    for each in dataclasses.fields(measured):
        if each.name != "cell":
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            columns[each.name] = (hints[each.name], ... if default is MISSING else default)
    return create_model(name, __doc__=about, __config__=ConfigDict(extra="forbid"), **columns)


TARGET: dict[str, Any] = {"sparsity": float | None, "budget": str | None}
RowRecord = _flat("Row", inspect.getdoc(Row) or "", Row)
SummaryRecord = _flat("SummaryRecord", inspect.getdoc(Summarised) or "", Summarised, without=("seed",))


@dataclass(frozen=True)
class Record:
    """A comparison: results.json of a store, and what `--format json` prints. A number that is not finite is null."""

    schema: Literal[1]
    polyprune: str
    environment: dict[str, Any]
    config: dict[str, Any]
    model: ModelRecord
    texts: TextsRecord
    rows: list[RowRecord]  # type: ignore[valid-type]
    summary: list[SummaryRecord]  # type: ignore[valid-type]


@cache
def adapter() -> TypeAdapter[Record]:
    """Returns what checks a record."""
    return TypeAdapter(Record)


def results_schema() -> dict[str, Any]:
    """Returns the JSON Schema of a comparison's results."""
    return {"$schema": DIALECT, "title": "polyprune results, schema 1"} | adapter().json_schema()


def published() -> str:
    """Returns the text of the schema file that ships with the package."""
    return files("polyprune_core.results").joinpath(FILE).read_text("utf-8")


def rendered() -> str:
    """Returns the text that the schema file has to have."""
    return json.dumps(results_schema(), indent=1) + "\n"


if __name__ == "__main__":
    print(rendered(), end="")  # noqa: T201
