"""The calibration behind the metrics: its statistics, what they cost, other metrics, and the budget."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from all_metrics import Magnitude, calibration_for, scores

from polyprune_core import Provider
from polyprune_core.errors import PluginError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.losses import Objective
from polyprune_core.models.describe import describe
from polyprune_core.plugins.registry import Registered, Registry, Source
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.utils.rng import generator
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.initializers.llm_pruner import LLMPruner
from polyprune_plugins.initializers.wanda import Wanda


def test_statistics_are_computed_once_and_their_cost_is_counted(llama, ids) -> None:
    done = []
    calibration = Calibration(
        llama, describe(llama), ids, generator(0, "metric"), 2, progress=lambda n, total: done.append((n, total))
    )
    first = calibration.input_statistics()
    again = calibration.input_statistics()
    assert all(again[name] is moments for name, moments in first.items())
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (3, 60, 0)
    assert done == [(1, 3), (2, 3), (3, 3)]
    calibration.gradients()
    calibration.gradients()
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (6, 120, 3)
    calibration.gradients(squares=True)
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (11, 180, 8)


def test_input_statistics_are_the_moments_over_all_tokens(llama, ids) -> None:
    seen = []
    reader = llama.model.layers[1].mlp.down_proj
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].double().flatten(0, 1))):
        llama(input_ids=ids)
    found = calibration_for(llama, ids, 2).input_statistics()["layers.1.mlp"]
    torch.testing.assert_close(found.mean.double(), seen[0].mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean_square.double(), seen[0].square().mean(dim=0), rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_loss_however_uneven_the_batches(llama, ids) -> None:
    model = copy.deepcopy(llama).requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    mean, square = calibration_for(llama, ids, 3).gradients()
    assert square == {}
    for name, gradient in mean.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_under_masks_are_the_masked_models_and_are_counted(llama, ids, shared) -> None:
    layout = describe(llama)
    space = MaskSpace(layout, [*Head().groups(layout), *Channel().groups(layout)])
    masks = torch.rand((3, len(space)), generator=generator(0, "masks")) < 0.7
    compactor = Compactor(llama, layout)
    calibration = Calibration(llama, layout, ids, generator(0, "metric"), compactor=compactor if shared else None)
    with compactor if shared else nullcontext():
        found = calibration.losses(space, masks, ids[:2])
    with compactor:
        expected = Objective(compactor, space).losses(masks, ids[:2])
    assert torch.equal(found, expected)
    assert found.unique().numel() == 3
    assert (calibration.forward_passes, calibration.forward_tokens) == (3, 3 * ids[:2].numel())
    found[0] = 0  # an ordinary tensor, which a metric may write into


# A metric that builds on another, or decides under a budget.


@pytest.mark.parametrize("how", ["raw", "zscore", "per-parameter"])
@pytest.mark.parametrize("spec", ["wanda", "llm-pruner:taylor=vector"])
def test_another_metric_scores_as_it_does_alone_and_is_paid_for(llama, space_of, ids, spec, how) -> None:
    space = space_of(llama, Head(), Channel())
    metric = LLMPruner("vector") if ":" in spec else Wanda()
    alone, calibration = calibration_for(llama, ids, 2), calibration_for(llama, ids, 2)
    expected = scale(metric.score(llama, space, alone), space, how)
    assert torch.equal(calibration.score(spec, space, how), expected)
    costs = ("forward_passes", "forward_tokens", "backward_passes")
    assert [getattr(calibration, cost) for cost in costs] == [getattr(alone, cost) for cost in costs]


def test_another_metric_is_looked_for_where_the_run_found_this_one(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    known = [Registered("initializer", Provider("own", "made for a test", Wanda), Source("test", "1"))]
    calibration = Calibration(llama, space.layout, ids, generator(0, "metric"), measure=Registry(known, ()).measure)
    assert torch.equal(calibration.score("own", space), scores(Wanda(), llama, space, ids))
    with pytest.raises(PluginError, match="no initializer named 'wanda'"):
        calibration.score("wanda", space)


def test_scores_made_for_a_budget_are_not_rescaled_for_another_metric(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    for needs, expected in ((frozenset(), "zscore"), (frozenset({"budget"}), "raw")):
        known = [Registered("initializer", Provider("own", "made for a test", Magnitude, needs), Source("test", "1"))]
        calibration = Calibration(llama, space.layout, ids, generator(0, "metric"), measure=Registry(known, ()).measure)
        plain = scores(Magnitude(), llama, space, ids)
        assert torch.equal(calibration.score("own", space, "zscore"), scale(plain, space, expected))


def test_a_budget_that_was_not_asked_for_is_not_given(llama, ids) -> None:
    asked = SelectionRule(0.3, "global", 2)
    calibration = Calibration(llama, describe(llama), ids, generator(0, "metric"), budget=asked)
    assert calibration.budget is asked
    with pytest.raises(PluginError, match='put "budget" into the needs of its Provider'):
        _ = calibration_for(llama, ids).budget
