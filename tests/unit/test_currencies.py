"""One budget, several currencies: what each means in prices, that it is met, and what is said where it cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.errors import BudgetError
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.budget import select
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.pricing import price_budget
from polyprune_core.pruning.projection import project
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import EPS, Scores
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp
from tests.rows import cell as made_cell

scopes = pytest.mark.parametrize("scope", sorted(SCOPES))
KINDS = {"head+channel": (Head(), Channel()), "layer": (Layer(),), "attention": (Attention(),)}


@dataclass
class FakeGauge:
    """A machine on which a smaller model's time is `floor` plus what its parameters are in proportion."""

    itemsize: int = 4
    stored_itemsize: int = 4
    floor: float = 0.2
    asked: list[float] = field(default_factory=list)

    def latency(self, space, selection) -> float:
        self.asked.append(selection.sparsity)
        return self.floor + (1 - self.floor) * (1 - selection.sparsity)


def smaller(model, space, selection) -> torch.nn.Module:
    base = LoadedModel("tiny", model, None, "", None)
    return PrunedModel(base, space, selection, Scores(torch.zeros(len(space)), "none")).build()


def cached_bytes(model) -> float:
    """Bytes that the model's own cache holds for one token."""
    with torch.no_grad():
        cache = model(torch.zeros(1, 5, dtype=torch.int64), use_cache=True).past_key_values
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)) / 5


def weight_bytes(model) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("kv-cache=0.7", BudgetSpec("kv-cache", 0.7)),
        ("KV_Cache = .5", BudgetSpec("kv-cache", 0.5)),
        ("bytes=200MB", BudgetSpec("bytes", 200e6, relative=False)),
        ("bytes=1.5 gib", BudgetSpec("bytes", 1.5 * 2**30, relative=False)),
        ("bytes=4096", BudgetSpec("bytes", 4096, relative=False)),
        ("parameters=100M", BudgetSpec("parameters", 100e6, relative=False)),
        ("latency=7e-1", BudgetSpec("latency", 0.7)),
    ],
)
def test_a_budget_is_read_as_a_fraction_or_an_amount_with_its_unit(text, target) -> None:
    assert BudgetSpec.parse(text) == target
    assert BudgetSpec.parse(str(target)) == target


@given(st.sampled_from(["parameters", "bytes", "kv-cache"]), st.floats(2, 1e13))
def test_an_amount_reads_back_as_what_it_was_to_twelve_digits(currency, amount) -> None:
    again = BudgetSpec.parse(str(BudgetSpec(currency, amount, relative=False)))
    assert again.amount == pytest.approx(amount, rel=1e-11)
    assert not again.relative


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("watts=3", ["no budget currency named 'watts'", "bytes, kv-cache, latency, parameters"]),
        ("kv-cache", ["'kv-cache' cannot be read", "kv-cache=0.7", "kv-cache=20kB"]),
        ("bytes=3M", ["cannot be read", "bytes=200MB"]),
        ("bytes=-3MB", ["cannot be read"]),
        ("latency=20ms", ["cannot be read", "latency=0.7"]),
        ("latency=3", ["latency=3 is not a fraction", "latency=0.7"]),
        ("kv-cache=1", ["kv-cache=1 is not a fraction"]),
        ("parameters=0", ["parameters=0 is not a fraction"]),
    ],
)
def test_what_is_no_budget_is_refused_with_what_is(text, parts) -> None:
    with pytest.raises(BudgetError) as refusal:
        BudgetSpec.parse(text)
    for part in parts:
        assert part in str(refusal.value)


@scopes
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("currency", ["parameters", "bytes", "kv-cache"])
def test_a_budget_is_met_by_the_model_that_is_built_and_what_is_said_of_it_is_true(
    model, space_of, kinds, currency, scope
) -> None:
    space = space_of(model, *kinds)
    scores = torch.rand(len(space), generator=torch.Generator().manual_seed(3))
    whole = {"parameters": describe(model).total_parameters, "bytes": weight_bytes(model)}.get(currency)
    whole = whole or cached_bytes(model)
    asked = BudgetSpec(currency, 0.8 * whole, relative=False)
    terms = price_budget(asked, space, scope, 0, FakeGauge())
    selection = select(scores, terms.space, terms.sparsity, scope, 0)
    built = smaller(model, space, selection)
    measured = {"parameters": built.num_parameters(), "bytes": weight_bytes(built)}.get(currency)
    if measured is None:  # where an attention is missing, one number stands in the cache to count the tokens
        missing = sum("attention" in getattr(layer, "skip", ()) for layer in _per_layer(built))
        measured = cached_bytes(built) - missing * 2 * 4
    assert measured == terms.spent(selection)
    assert 0.3 * whole < measured <= 0.8 * whole


def _per_layer(model) -> list:
    config = model.config
    return [config.per_layer_config[i] for i in range(config.num_hidden_layers)] if config.is_heterogeneous else []


@scopes
def test_a_sparsity_and_a_budget_in_parameters_are_one_thing(llama, space_of, scope) -> None:
    space = space_of(llama, Head(), Channel())
    terms = price_budget(BudgetSpec.parse("parameters=0.7"), space, scope, 1, FakeGauge())
    assert terms.sparsity == BudgetSpec.of_sparsity(0.3).sparsity == 0.3
    assert torch.equal(terms.space.price, space.cost)
    given_so = cells(Comparison(sparsity=(0.3, 0.5)))
    for budget in (("parameters=0.7", "parameters=0.5"), ("Parameters=.7", "parameters=50e-2")):
        assert cells(Comparison(budget=budget)) == given_so
    alike = (Pruning(budget="parameters=0.7"), Pruning(sparsity=0.3))
    assert len({tuple(cells(each.as_comparison())) for each in alike}) == 1


def test_a_budget_takes_the_place_of_the_default_sparsity_and_stands_beside_one_that_is_given() -> None:
    def asked(**lists) -> list[tuple[float | None, str | None]]:
        grid = [cell for cell in cells(Comparison(baselines="random", **lists)) if cell.kind != "dense"]
        return [(cell.sparsity, cell.budget) for cell in grid]

    assert asked() == [(0.2, None)]
    assert asked(budget="kv-cache=0.7") == [(None, "kv-cache=0.7")]
    assert asked(budget="bytes=2000kB", sparsity=0.4) == [(0.4, None), (None, "bytes=2MB")]
    assert made_cell(kind="baseline", budget="kv-cache=0.7").target == BudgetSpec("kv-cache", 0.7)


@scopes
def test_units_that_hold_no_cache_are_kept_by_a_budget_of_cache(llama, space_of, scope) -> None:
    space = space_of(llama, Head(), Channel())
    terms = price_budget(BudgetSpec("kv-cache", 0.5), space, scope, 0, FakeGauge())
    free = space.kind == space.kinds.index("channel")
    assert ((terms.space.price == 0) == free).all()
    assert select(-torch.rand(len(space)), terms.space, terms.sparsity, scope, 0).keep[free].all()
    projected = project(torch.rand(len(space)), terms.space, terms.sparsity, scope)
    assert (projected[free] == 1 - EPS).all()
    assert float(projected[~free].mean()) <= 0.5 + 1e-6


@pytest.mark.parametrize("text", ["kv-cache=0.05", "bytes=1kB", "parameters=1k", "bytes=0.2"])
@scopes
def test_a_budget_out_of_reach_says_what_can_be_reached_and_that_can(llama, space_of, scope, text) -> None:
    space = space_of(llama, Head(), Channel())
    with pytest.raises(BudgetError, match="cannot be met") as refusal:
        price_budget(BudgetSpec.parse(text), space, scope, 1, FakeGauge())
    advice = BudgetSpec.parse(re.search(r"Use (\S+) or more", str(refusal.value)).group(1))
    terms = price_budget(advice, space, scope, 1, FakeGauge())
    assert terms.spent(select(torch.zeros(len(space)), terms.space, terms.sparsity, scope)) <= advice.amount


def test_a_latency_out_of_reach_says_what_was_measured(llama, space_of) -> None:
    space, gauge = space_of(llama, Head(), Channel()), FakeGauge()
    with pytest.raises(BudgetError, match=r"latency=0\.3 cannot be met.*Use latency=(0\.\d+) or more") as refusal:
        price_budget(BudgetSpec("latency", 0.3), space, "kind", 1, gauge)
    advice = BudgetSpec.parse(re.search(r"Use (\S+) or more", str(refusal.value)).group(1))
    assert price_budget(advice, space, "kind", 1, gauge).sparsity == pytest.approx(gauge.asked[0], abs=0.02)


@pytest.mark.parametrize("text", ["kv-cache=1GB", "bytes=1GB", "parameters=1B"])
def test_a_budget_that_the_dense_model_meets_is_refused(llama, space_of, text) -> None:
    with pytest.raises(BudgetError, match="removes nothing: the dense model has"):
        price_budget(BudgetSpec.parse(text), space_of(llama, Head()), "kind", 1, FakeGauge())


def test_no_unit_that_holds_any_cache_is_told(llama, space_of) -> None:
    with pytest.raises(
        BudgetError, match=r"kv-cache=0.5 cannot be met: units of .* hold none of it; use another --granularity"
    ):
        price_budget(BudgetSpec("kv-cache", 0.5), space_of(llama, Mlp()), "kind", 0, FakeGauge())


@pytest.mark.parametrize("fraction", [0.35, 0.5, 0.9])
def test_latency_takes_the_least_sparsity_that_is_fast_enough(llama, space_of, fraction) -> None:
    space, gauge = space_of(llama, Channel()), FakeGauge()
    terms = price_budget(BudgetSpec("latency", fraction), space, "kind", 0, gauge)
    assert gauge.latency(space, select(torch.zeros(len(space)), space, terms.sparsity, "layer", 0)) <= fraction
    less = select(torch.zeros(len(space)), space, terms.sparsity - 0.01, "layer", 0)
    assert gauge.latency(space, less) > fraction
    assert len(gauge.asked) < 12


def test_a_machine_on_which_nothing_is_faster_is_told(llama, space_of) -> None:
    gauge = FakeGauge(floor=1.0)
    with pytest.raises(BudgetError, match=r"latency=0.9 cannot be met.* 1 is left at least\. Use another"):
        price_budget(BudgetSpec("latency", 0.9), space_of(llama, Channel()), "kind", 0, gauge)


def test_giving_both_a_sparsity_and_a_budget_to_prune_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"sparsity 0\.3 and budget bytes=2MB were both given"):
        Pruning(sparsity=0.3, budget="bytes=2MB")


def test_nothing_to_remove_is_refused() -> None:
    with pytest.raises(BudgetError, match="--sparsity or --budget"):
        Comparison(sparsity=())


@pytest.mark.parametrize(
    ("text", "each"), [("parameters=20k", 1), ("bytes=90kB", 4), ("bytes=0.9", 4 / 90_000), ("kv-cache=0.5", 0)]
)
def test_parameters_that_a_repair_adds_are_counted_in_the_budgets_own_terms(llama, space_of, text, each) -> None:
    space = space_of(llama, Channel(), Head())
    terms = price_budget(BudgetSpec.parse(text), space, "global", 0, FakeGauge())
    selection = select(torch.arange(float(len(space))), terms.space, terms.sparsity, "global", 0)
    whole = space.layout.total_parameters * 4
    found = terms.spent(selection, 10) - terms.spent(selection)
    assert found == pytest.approx(10 * (4 / whole if text == "bytes=0.9" else each), rel=1e-6, abs=1e-12)
