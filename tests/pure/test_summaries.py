"""What may be called best, what no other row beats, and which noise a comparison has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary, summarise
from tests.rows import row as made_row

WINDOWS = 60


def rows(name: str, losses: list[float], kind: str = "baseline", **changes: Any) -> list[Row]:
    """One row a seed; `name` is the metric, or the estimator of a search from wanda."""
    criterion = {"initializer": name} if kind == "baseline" else {"initializer": "wanda"}
    if kind == "search":
        criterion["estimator"] = name
    where = {"granularity": "head", "sparsity": 0.2, "scope": "kind", "parameters_kept_fraction": 0.8}
    return [
        made_row(
            **{"id": f"{kind}-{name}-{seed}", "kind": kind, "seed": seed, "nll": nll, "perplexity": math.exp(nll)}
            | where
            | criterion
            | changes
        )
        for seed, nll in enumerate(losses)
    ]


def windows(found: list[Row], spread: float) -> dict[str, np.ndarray]:
    """Window losses around each row's mean; `spread` is what rows do not have in common."""
    text = np.random.default_rng(0).normal(0, 1, WINDOWS)
    made = {}
    for index, row in enumerate(found):
        own = np.random.default_rng(index).normal(0, spread, WINDOWS)
        made[row.id] = ((row.nll or 0.0) + text + own - (text + own).mean()).astype(np.float32)
    return made


def by_name(found: list[Summary]) -> dict[str, Summary]:
    return {summary.row.cell.estimator or summary.row.cell.initializer or "dense": summary for summary in found}


def test_the_best_row_is_better_than_every_other_one() -> None:
    found = [*rows("a", [3.0, 3.1, 3.2]), *rows("b", [3.2, 3.31, 3.4]), *rows("c", [3.9, 4.0, 4.12])]
    assert [summary.best for summary in summarise(found, {})] == [True, False, False]


@pytest.mark.parametrize(
    "second",
    [[3.01, 3.1, 3.2], [3.0, 3.6, 3.1], [3.5]],
    ids=["too near", "not at every seed", "at one seed only"],
)
def test_no_row_is_best_that_one_other_may_equal(second: list[float]) -> None:
    found = [*rows("a", [3.0, 3.1, 3.2]), *rows("b", second), *rows("c", [3.9, 4.0, 4.12])]
    assert not any(summary.best for summary in summarise(found, {}))


def test_no_row_is_best_inside_the_noise_of_the_evaluation() -> None:
    found = [*rows("a", [3.0, 3.1, 3.2]), *rows("b", [3.05, 3.16, 3.25])]
    assert by_name(summarise(found, {}))["a"].best
    assert by_name(summarise(found, windows(found, 0.01)))["a"].best
    assert not by_name(summarise(found, windows(found, 1.0)))["a"].best


def test_a_row_alone_or_among_failures_is_not_best() -> None:
    alone = rows("a", [3.0, 3.1])
    failed = rows("b", [9.0, 9.0], status="failed")
    assert not summarise(alone, {})[0].best
    assert not summarise([*alone, *failed], {})[0].best


def test_another_sparsity_or_granularity_is_another_competition() -> None:
    found = [
        *rows("a", [3.0, 3.1, 3.2]),
        *rows("b", [3.2, 3.31, 3.4]),
        *rows("a", [4.2, 4.3, 4.4], sparsity=0.5),
        *rows("b", [4.0, 4.11, 4.2], sparsity=0.5),
    ]
    assert [summary.best for summary in summarise(found, {})] == [True, False, False, True]


def test_a_search_has_both_noises_where_windows_are_known() -> None:
    found = [*rows("start", [3.3, 3.4, 3.5], "start"), *rows("rloo", [3.1, 3.21, 3.3], "search")]
    alone = by_name(summarise(found, {}))["rloo"].versus
    both = by_name(summarise(found, windows(found, 0.01)))["rloo"].versus
    assert alone is not None
    assert both is not None
    assert alone.evaluation is None
    assert both.evaluation is not None
    assert (both.evaluation.windows, both.verdict) == (WINDOWS, "better")
    assert (both.ratio, both.ci95) == (alone.ratio, alone.ci95)
    unsure = by_name(summarise(found, windows(found, 3.0)))["rloo"].versus
    assert unsure is not None
    assert unsure.verdict == "no difference shown"


def test_windows_of_some_seeds_only_give_no_noise() -> None:
    found = [*rows("start", [3.3, 3.4], "start"), *rows("rloo", [3.1, 3.2], "search")]
    some = windows(found, 0.01)
    del some["start-start-1"]
    versus = by_name(summarise(found, some))["rloo"].versus
    assert versus is not None
    assert versus.evaluation is None


def test_all_searches_of_a_table_are_corrected_together() -> None:
    found = rows("start", [3.3, 3.4, 3.5], "start")
    found += rows("rloo", [3.1, 3.25, 3.3], "search")
    one = by_name(summarise(found, {}))["rloo"].versus
    many = [each for index in range(9) for each in rows(f"e{index}", [3.3, 3.4, 3.5 + index / 10], "search")]
    among = by_name(summarise([*found, *many], {}))["rloo"].versus
    assert one is not None
    assert among is not None
    assert one.t_p == among.t_p
    assert one.q == pytest.approx(one.t_p)
    assert among.q == pytest.approx(10 * (one.t_p or 0), rel=1e-9)
    assert (one.verdict, among.verdict) == ("better", "better before correction")


def test_rows_on_a_front_are_marked_with_it() -> None:
    found = [
        made_row(id="dense", kind="dense", nll=3.0, perplexity=math.exp(3.0), parameters_kept_fraction=1.0),
        *rows("cheap", [3.6]),
        *rows("good", [3.3], forward_tokens=100),
        *rows("dear", [3.4], forward_tokens=200),
        *rows("steep", [3.2], forward_tokens=100, backward_passes=8),
        *rows("small", [3.9], sparsity=0.5, parameters_kept_fraction=0.6),
    ]
    fronts = {name: summary.pareto for name, summary in by_name(summarise(found, {})).items()}
    assert fronts == {
        "dense": ("size",),
        "cheap": ("cost",),
        "good": ("cost",),
        "dear": (),
        "steep": ("size", "cost"),
        "small": ("size", "cost"),
    }


def test_one_unit_more_or_less_makes_no_front() -> None:
    found = [
        *rows("good", [3.3], parameters_kept_fraction=0.80001),
        *rows("bad", [5.0], parameters_kept_fraction=0.79999),
    ]
    assert by_name(summarise(found, {}))["bad"].pareto == ()


def test_a_row_without_a_finite_perplexity_is_on_no_front_and_never_best() -> None:
    found = [
        *rows("a", [math.inf, math.inf], perplexity=math.inf),
        *rows("b", [math.inf, math.inf], perplexity=math.inf),
    ]
    assert [(summary.best, summary.pareto) for summary in summarise(found, {})] == [(False, ())] * 2
