"""Rows, their summary over seeds, and both as JSON that reads back as what it was."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyprune_core.results.results import SCHEMA, Results
from polyprune_core.results.row import Row, columns_of_row, row_from_json
from polyprune_core.utils.numbers import finite
from tests.rows import changed
from tests.rows import row as made_row


def row(kind: str = "search", seed: int | None = 0, nll: float | None = 3.0, **changes: Any) -> Row:
    """A measured row; without an nll a failed one."""
    shared: dict[str, Any] = {"granularity": "head+channel", "sparsity": 0.2, "initializer": "wanda", "scope": "kind"}
    if kind == "dense":
        shared, seed = {}, None
    if kind == "search":
        shared["estimator"] = "rloo"
    if kind == "baseline":
        shared["scale"] = "zscore"
    if nll is None:
        shared |= {"status": "failed", "error": "no"}
    else:
        shared |= {"nll": nll, "perplexity": math.exp(nll) if nll < 709 else math.inf, "eval_tokens": 100}
    return made_row(id=f"{kind}-{seed}", kind=kind, seed=seed, **(shared | changes))


def results(*rows: Row) -> Results:
    return Results("0.1", {"python": "3"}, {"seeds": [0]}, {"name": "tiny"}, {"evaluation": {}}, list(rows))


def through_json(found: Results) -> Results:
    return Results.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))


def test_results_read_back_from_json_as_what_they_were() -> None:
    found = results(
        row("dense", nll=2.0),
        row("baseline", plugins={"initializer": "polyprune 0.1"}, sparsity_achieved=0.2023, peak_memory_mb=12.5),
        row("start"),
        row(seed=0, non_finite_losses=2, forward_tokens=10**12),
        row(seed=1, nll=None),
    )
    assert through_json(found) == found
    assert through_json(found).to_json() == found.to_json()


def test_the_json_names_its_schema_and_every_field_of_a_row() -> None:
    record = results(row("dense")).to_json()
    assert record["schema"] == SCHEMA == 1
    assert list(record["rows"][0]) == list(columns_of_row())


def test_an_overflowed_perplexity_is_null_in_json_and_infinite_again_when_read() -> None:
    found = results(row(nll=1000.0))
    record = found.to_json()
    assert record["rows"][0]["perplexity"] is None
    assert record["rows"][0]["nll"] == 1000.0
    assert through_json(found).rows[0].perplexity == math.inf
    assert through_json(found) == found


def test_a_failed_row_keeps_its_reason_and_gets_no_perplexity_when_read() -> None:
    back = row_from_json(row(nll=None).to_json())
    assert (back.status, back.error, back.perplexity, back.nll) == ("failed", "no", None, None)


def test_a_row_with_an_infinite_loss_has_the_same_summary_after_it_is_read_back() -> None:
    found = results(row("start", nll=math.inf))
    assert through_json(found).to_json()["summary"] == found.to_json()["summary"]


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(JSON_LIKE)
def test_finite_makes_any_value_strict_json_and_changes_nothing_else(value: Any) -> None:
    plain = finite(value)
    text = json.dumps(plain, allow_nan=False)
    assert finite(plain) == plain
    assert json.loads(text) == plain
    if "NaN" not in (loose := json.dumps(value)) and "Infinity" not in loose:
        assert plain == json.loads(loose)


def test_rows_that_differ_in_their_seed_only_are_one_summary() -> None:
    found = results(row("dense"), *(row(seed=seed, nll=3 + seed / 10) for seed in (2, 0, 1))).summaries()
    assert [(s.row.cell.kind, s.seeds) for s in found] == [("dense", ()), ("search", (2, 0, 1))]
    values = [math.exp(3.2), math.exp(3.0), math.exp(3.1)]
    assert found[1].perplexity.mean == pytest.approx(sum(values) / 3, rel=1e-12)
    assert found[1].log_perplexity.mean == pytest.approx(3.1, rel=1e-12)
    assert found[0].perplexity.n == 1


@pytest.mark.parametrize(
    "change",
    [
        {"granularity": "layer"},
        {"sparsity": 0.3},
        {"initializer": "random"},
        {"estimator": "antithetic"},
        {"scope": "global"},
        {"repair": "bias"},
        {"kind": "start"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_that_differ_in_anything_else_are_not(change: dict[str, Any]) -> None:
    summaries = results(row(), changed(row(seed=1), **change)).summaries()
    assert [s.seeds for s in summaries] == [(0,), (1,)]


def test_summaries_come_in_the_order_in_which_their_rows_first_appear() -> None:
    rows = [row("dense"), row("baseline"), row("start", seed=0), row("start", seed=1), row(seed=0), row(seed=1)]
    assert [s.row.cell.kind for s in results(*rows).summaries()] == ["dense", "baseline", "start", "search"]


def test_a_search_is_compared_with_the_start_of_the_same_seed() -> None:
    starts = [row("start", seed=seed, nll=nll) for seed, nll in ((0, 5.0), (1, 3.0), (2, 4.0))]
    searches = [row(seed=seed, nll=nll - 0.5) for seed, nll in ((1, 3.0), (0, 5.0))]  # another order, one seed less
    versus = results(*starts, *searches).summaries()[-1].versus
    assert versus.n == 2
    assert versus.ratio == pytest.approx(math.exp(-0.5), rel=1e-12)
    assert versus.ci95 == pytest.approx((math.exp(-0.5),) * 2, rel=1e-12)  # every pair differs by the same


@pytest.mark.parametrize(
    "other",
    [{"granularity": "layer"}, {"sparsity": 0.3}, {"initializer": "random"}, {"scope": "global"}, {"seed": 1}],
    ids=lambda change: next(iter(change)),
)
def test_a_start_under_other_conditions_is_no_reference(other: dict[str, Any]) -> None:
    start = changed(row("start"), **other)
    assert results(start, row()).summaries()[-1].versus is None


def test_a_metric_alone_is_compared_with_nothing() -> None:
    assert [s.versus for s in results(row("dense"), row("start"), row("baseline")).summaries()] == [None] * 3


def test_a_failed_seed_is_counted_and_left_out_of_the_mean() -> None:
    found = results(row("start", seed=0), row("start", seed=1), row(seed=0, nll=None), row(seed=1, nll=2.5))
    summary = found.summaries()[-1]
    assert (summary.seeds, summary.failed) == ((1,), 1)
    assert summary.perplexity.mean == pytest.approx(math.exp(2.5))
    assert summary.versus.n == 1
    assert summary.row.status == "ok"


def test_a_failed_start_is_no_reference() -> None:
    assert results(row("start", nll=None), row()).summaries()[-1].versus is None


def test_a_summary_of_failures_only_has_no_numbers() -> None:
    record = results(row(nll=None), row(seed=1, nll=None)).to_json()["summary"][0]
    assert (record["n"], record["failed"]) == (0, 2)
    assert [record[name] for name in ("perplexity_mean", "perplexity_sd", "ci95", "versus")] == [None] * 4


def test_the_summary_in_json_has_the_fields_that_are_promised() -> None:
    rows = [row("dense"), *(row(kind, seed=seed, nll=3 + seed / 7) for kind in ("start", "search") for seed in (0, 1))]
    dense, start, search = results(*rows).to_json()["summary"]
    fields = ["kind", "granularity", "initializer", "estimator", "sparsity", "budget", "repair"]
    fields += ["scope", "scale", "shapes", "n", "failed"]
    measured = ["perplexity_mean", "perplexity_sd", "ci95", "tasks", "evaluations", "versus", "best", "pareto"]
    assert list(search) == [*fields, *measured]
    assert (dense["n"], start["n"], search["n"]) == (1, 2, 2)
    assert (dense["versus"], start["versus"]) == (None, None)
    assert search["versus"] == {
        "row": "start",
        "ratio": 1.0,
        "ci95": [1.0, 1.0],
        "p": None,
        "q": pytest.approx(1.0),
        "evaluation": None,
        "verdict": search["versus"]["verdict"],
    }
    assert search["ci95"][0] < search["perplexity_mean"] < search["ci95"][1]
