"""What the search keeps of its metric, what it finds, what it costs, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polyprune_core import Calibration, ConfigError, MaskSpace, PluginError, SelectionRule
from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space
from polyprune_evolution import Evolution

HALF = SelectionRule(0.5)
SMALL = Evolution(metric="magnitude", generations=4, population=6, windows=2)


def scored(
    search: Evolution = SMALL,
    model: Any = None,
    units: str = "head+channel",
    budget: SelectionRule = HALF,
    **calibration: Any,
) -> tuple[Tensor, MaskSpace, Calibration]:
    """Returns the scores of a tiny model's units, the units, and the calibration that was spent on them."""
    model = model or tiny_model()
    space, spent = tiny_space(model, units), tiny_calibration(model, budget=budget, **calibration)
    return search.score(model, space, spent), space, spent


def loss(model: Any, space: MaskSpace, scores: Tensor, budget: SelectionRule = HALF) -> float:
    """Returns the loss of the model that the budget leaves, on the whole text."""
    calibration = tiny_calibration(model)
    return float(calibration.losses(space, budget.select(scores, space).keep[None], calibration.windows))


def start(model: Any, space: MaskSpace) -> Tensor:
    return tiny_calibration(model).score("magnitude", space, "zscore")


@pytest.mark.parametrize("units", ["head+channel", "channel", "head", "attention+mlp", "layer"])
def test_units_of_a_group_move_together(units) -> None:
    scores, space, _ = scored(units=units)
    moved = (scores - start(tiny_model(), space)).double()
    for where in space.slices():
        torch.testing.assert_close(moved[where], moved[where][:1].expand(len(moved[where])), rtol=0, atol=1e-5)


def test_a_layer_that_adds_nothing_gives_first(monkeypatch) -> None:
    def worth_of_other_layers(self: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        return -masks[:, space.layer != 1].float().sum(dim=1)

    monkeypatch.setattr(Calibration, "losses", worth_of_other_layers)
    scores, space, _ = scored(Evolution(metric="magnitude", generations=25, population=8), units="channel")
    kept = [int(HALF.select(scores, space).keep[where].sum()) for where in space.slices()]
    evenly = [int(HALF.select(start(tiny_model(), space), space).keep[where].sum()) for where in space.slices()]
    assert min(evenly) >= 25
    assert kept[1] <= 5
    assert sum(kept) == sum(evenly)


def test_the_effort_grows_with_the_number_of_groups() -> None:
    spent = {
        units: scored(Evolution("magnitude"), units=units)[2].forward_passes - 2 for units in ("layer", "head+channel")
    }
    assert spent == {"layer": 2 * 7, "head+channel": 4 * 9}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scope", ["kind", "global"])
def test_what_is_found_is_never_worse_on_the_whole_text_than_the_metric(seed, scope) -> None:
    model, budget = tiny_model(), SelectionRule(0.5, scope)
    search = Evolution(metric="magnitude", generations=1, population=4, windows=1, sigma=3.0)
    scores, space, _ = scored(search, model, budget=budget, seed=seed)
    assert loss(model, space, scores, budget) <= loss(model, space, start(model, space), budget) + 1e-6


def test_where_nothing_better_is_found_the_metric_is_returned(monkeypatch) -> None:
    space = tiny_space(tiny_model())
    first = HALF.select(start(tiny_model(), space), space).keep

    def best_at_the_start(self: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        return (masks != first).any(dim=1).float()

    monkeypatch.setattr(Calibration, "losses", best_at_the_start)
    scores, space, _ = scored()
    torch.testing.assert_close(scores, start(tiny_model(), space))


@pytest.mark.parametrize(("batch_size", "passes_a_mask", "passes_of_all"), [(8, 1, 1), (2, 1, 3), (1, 2, 5)])
def test_every_pass_is_counted_and_none_is_larger_than_a_batch(
    monkeypatch, batch_size, passes_a_mask, passes_of_all
) -> None:
    sizes, losses = [], Calibration.losses

    def watched(self: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return losses(self, space, masks, ids)

    monkeypatch.setattr(Calibration, "losses", watched)
    _, _, spent = scored(batch_size=batch_size)
    candidates = SMALL.generations * SMALL.population
    tokens = spent.windows.shape[1]
    assert max(sizes) <= batch_size
    assert spent.forward_passes == candidates * passes_a_mask + 2 * passes_of_all
    assert spent.forward_tokens == (candidates * SMALL.windows + 2 * len(spent.windows)) * tokens
    assert spent.backward_passes == 0


def test_the_cost_of_the_metric_is_counted_too() -> None:
    alone = tiny_calibration(tiny_model())
    alone.gradients()
    _, _, free = scored()
    _, _, paid = scored(Evolution("llm-pruner/taylor=vector", 4, 6, 2))
    assert paid.backward_passes == alone.backward_passes > 0
    assert paid.forward_passes == free.forward_passes + alone.forward_passes


def test_a_generation_is_measured_on_one_batch_and_the_next_on_another(monkeypatch) -> None:
    batches, losses = [], Calibration.losses

    def watched(self: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        batches.append((len(masks), tuple(ids.flatten().tolist())))
        return losses(self, space, masks, ids)

    monkeypatch.setattr(Calibration, "losses", watched)
    scored()
    *generations, last = batches
    assert [count for count, _ in generations] == [SMALL.population] * SMALL.generations
    assert len({ids for _, ids in generations}) > 1
    assert last[0] == 2


def test_another_seed_searches_elsewhere_and_the_budget_decides_too() -> None:
    found = [scored()[0], scored(seed=1)[0], scored(budget=SelectionRule(0.4))[0]]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_progress_is_told_generation_by_generation() -> None:
    model, told = tiny_model(), []
    calibration = tiny_calibration(model, budget=HALF)
    calibration.progress = lambda done, total: told.append((done, total))
    SMALL.score(model, tiny_space(model), calibration)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_masks_whose_loss_is_no_number_lose(monkeypatch) -> None:
    losses = Calibration.losses

    def sometimes(self: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        found = losses(self, space, masks, ids)
        found[0 if len(masks) > 2 else 1] = math.nan
        return found

    monkeypatch.setattr(Calibration, "losses", sometimes)
    scores, space, _ = scored()
    torch.testing.assert_close(scores, start(tiny_model(), space))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generations": 0}, "option generations=0 is too small; give 1 or more"),
        ({"population": 3}, "option population=3 is too small; give 4 or more"),
        ({"windows": 0}, "option windows=0 is too small; give 1 or more"),
        ({"sigma": 0.0}, "option sigma=0 is no standard deviation; give a number above 0"),
        ({"sigma": math.nan}, "option sigma=nan is no standard deviation; give a number above 0"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message) -> None:
    with pytest.raises(PluginError, match=message):
        Evolution(**options)


def test_what_leaves_nothing_to_search_is_refused() -> None:
    with pytest.raises(ConfigError, match="which scope layer fixes; use kind or global"):
        scored(budget=SelectionRule(0.5, "layer"))
    model = tiny_model()
    space = tiny_space(model, "channel")
    alone = MaskSpace(space.layout, space.groups[:1])
    with pytest.raises(ConfigError, match="there is only one"):
        SMALL.score(model, alone, tiny_calibration(model, budget=HALF))


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(PluginError, match=r"no initializer named 'wandaa'\. Did you mean 'wanda'"):
        scored(Evolution("wandaa"))
