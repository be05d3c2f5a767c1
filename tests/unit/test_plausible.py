"""A decision or a row that says what cannot be is not kept, and the reason is told."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polyprune_core.errors import ResultError
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.pricing import price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import LegalShapes, Scores, Selection
from polyprune_core.results.row import Row, impossible, row_from_json
from polyprune_core.runs.plausible import check_decision
from polyprune_core.search.trace import Trace
from polyprune_core.testing.tiny import tiny_base, tiny_space
from tests.rows import cell, row

GAUGE: Any = SimpleNamespace(itemsize=4, stored_itemsize=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_base(tmp_path_factory.mktemp("base"))


def decided(base: Any, scope: str = "kind", **asked: Any) -> dict[str, Any]:
    """What `check_decision` is given for a decision as it is made."""
    one: Any = cell(kind="baseline", scale="zscore", scope=scope, **asked)
    space = tiny_space(base.model)
    terms = price_budget(one.target, space, scope, 1, GAUGE)
    values = torch.rand(len(space), generator=torch.Generator().manual_seed(0))
    rule = SelectionRule(terms.sparsity, scope)
    selection = rule.select(values, terms.space)
    pruned = PrunedModel(base, space, selection, Scores(values, "random"))
    return {"cell": one, "pruned": pruned, "terms": terms, "rule": rule, "trace": None, "steps": 0}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("asked", [{"sparsity": 0.05}, {"sparsity": 0.6}, {"budget": "kv-cache=0.7"}])
def test_what_is_decided_as_asked_passes(base, scope, asked) -> None:
    check_decision(**decided(base, scope, **asked))


def test_what_a_format_rounds_down_is_within_its_budget(base) -> None:
    given = decided(base, sparsity=0.6)
    rule = replace(given["rule"], shapes=LegalShapes(multiple_of={"channel": 8}))
    space, scores = given["pruned"].space, given["pruned"].scores
    rounded = replace(given["pruned"], selection=rule.select(scores.values, space))
    with pytest.raises(ResultError, match="what is gone would fit"):
        check_decision(**given | {"pruned": rounded})
    check_decision(**given | {"pruned": rounded, "rule": rule})


def with_keep(given: dict[str, Any], keep: torch.Tensor) -> dict[str, Any]:
    space = given["pruned"].space
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    return given | {"pruned": replace(given["pruned"], selection=selection)}


def one_more(given: dict[str, Any]) -> dict[str, Any]:
    keep = given["pruned"].selection.keep.clone()
    keep[(~keep).nonzero()[0]] = True
    return with_keep(given, keep)


def one_less(given: dict[str, Any]) -> dict[str, Any]:
    keep = given["pruned"].selection.keep.clone()
    keep[keep.nonzero()[-2:]] = False
    return with_keep(given, keep)


def another_figure(given: dict[str, Any]) -> dict[str, Any]:
    selection = replace(given["pruned"].selection, kept_cost=1)
    return given | {"pruned": replace(given["pruned"], selection=selection)}


def another_price(given: dict[str, Any]) -> dict[str, Any]:
    given["pruned"].space.cost[0] += 1
    return given


def another_budget(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"terms": replace(given["terms"], sparsity=0.1)}


def larger_floor(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"rule": replace(given["rule"], min_keep=30)}


def more_parameters(given: dict[str, Any]) -> dict[str, Any]:
    class Larger(PrunedModel):
        parameters = 10**9  # type: ignore[assignment]

    return given | {"pruned": Larger(**vars(given["pruned"]))}


WRONG = {
    "a unit more": (one_more, "of a pool is kept where sparsity 0.2 leaves"),
    "a unit less": (one_less, "and what is gone would fit"),
    "a sparsity that is not that of the units": (another_figure, "is reported where 0.2"),
    "prices that were changed": (another_price, "no longer cost what the model's layout says"),
    "another budget": (another_budget, "sparsity 0.2 was asked and 0.1 selected"),
    "a floor that does not hold": (
        lambda given: given | {"rule": replace(given["rule"], min_keep=30)},
        "where at least",
    ),
    "more parameters than there are": (more_parameters, "1,000,000,000 parameters are reported"),
    "numbers for truth values": (lambda given: with_mask(given, torch.ones(3)), "where one truth value for each"),
    "a search without its steps": (lambda given: given | {"trace": Trace(), "steps": 3}, "0 steps were taken where 3"),
}


def with_mask(given: dict[str, Any], keep: torch.Tensor) -> dict[str, Any]:
    selection = replace(given["pruned"].selection, keep=keep)
    return given | {"pruned": replace(given["pruned"], selection=selection)}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_decided_otherwise_than_asked_is_refused_with_the_reason(base, what) -> None:
    change, reason = WRONG[what]
    with pytest.raises(ResultError, match=f"wanda, sparsity 0.2, seed 0: .*{reason}"):
        check_decision(**change(decided(base, sparsity=0.2)))


def measured(**changes: Any) -> Row:
    figures = {"nll": 2.0, "perplexity": 7.38905609893065, "forward_passes": 2, "forward_tokens": 64}
    return row(id="x", kind="baseline", scale="zscore", **(figures | {"sparsity_achieved": 0.21} | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sparsity_achieved": 0.19}, "its sparsity_achieved is 0.19, less than the 0.2 asked"),
        ({"forward_tokens": 1}, "its 2 forward_passes have 1 forward_tokens"),
        ({"forward_passes": 0}, "its 0 forward_passes have 64 forward_tokens"),
        ({"backward_passes": 3}, "its 3 backward_passes are more than its 2 forward_passes"),
        ({"perplexity": 7.0}, "its perplexity is 7 where exp(nll) is 7.38906"),
        ({"parameters_kept_fraction": 1.2}, "its parameters_kept_fraction is 1.2"),
        ({"search_seconds": -1.0}, "its search_seconds is -1"),
    ],
)
def test_figures_that_do_not_go_together_are_told(changes, reason) -> None:
    assert list(impossible(measured())) == []
    assert list(impossible(measured(**changes))) == [reason]


def test_a_row_in_a_file_that_removed_less_than_asked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"less than the 0\.2 asked"):
        row_from_json(measured(sparsity_achieved=0.1).to_json())
