"""Greedy removal with refit against fits from scratch, and allocations against every choice."""

from __future__ import annotations

import itertools

import pytest
import torch
from all_metrics import calibration_for, scores

from polyprune_core.errors import ConfigError
from polyprune_core.pruning import refit
from polyprune_core.pruning.refit import DenseReader, removal
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.mlp import Mlp
from polyprune_plugins.initializers.bonsai import Bonsai, coefficients
from polyprune_plugins.initializers.knapsack import Knapsack, convex
from polyprune_plugins.initializers.obs import Obs
from polyprune_plugins.initializers.symbolic import Symbolic


def left_after(weight: torch.Tensor, inner: torch.Tensor, gone: torch.Tensor) -> float:
    """Returns the least error of a weight without the columns `gone`, fitted from scratch in the metric `inner`."""
    kept = ~gone
    fitted = torch.zeros_like(weight)
    fitted[:, kept] = torch.linalg.solve(inner[kept][:, kept], (weight @ inner)[:, kept].T).T
    return float(((weight - fitted) @ inner * (weight - fitted)).sum())


@pytest.mark.parametrize("lazy", [4, 64])
@pytest.mark.parametrize("owner", [torch.arange(20), torch.arange(20) // 3, torch.arange(20) % 4], ids=str)
def test_each_removal_adds_the_least_that_a_fit_from_scratch_would(owner, lazy, monkeypatch) -> None:
    monkeypatch.setattr(refit, "LAZY", lazy)
    rng = torch.Generator().manual_seed(0)
    x, mix, weight = (torch.randn(n, 20, generator=rng, dtype=torch.float64) for n in (90, 20, 7))
    covariance = (x @ mix).T @ (x @ mix) / 90
    inner = covariance + 0.1 * covariance.diag().median() * torch.eye(20, dtype=torch.float64)
    count = int(owner.max()) + 1
    order, errors = removal([DenseReader(weight, covariance, owner)], count, 0.1)
    gone, before = torch.zeros(20, dtype=torch.bool), 0.0
    for unit, error in zip(order.tolist(), errors.tolist(), strict=True):
        each = {other: left_after(weight, inner, gone | (owner == other)) for other in set(owner[~gone].tolist())}
        assert min(each, key=each.__getitem__) == unit
        assert error == pytest.approx(each[unit] - before, rel=1e-6)
        gone, before = gone | (owner == unit), each[unit]


def test_slopes_are_those_of_the_lower_convex_hull() -> None:
    errors, cost = torch.tensor([3.0, 1.0, 2.0, 9.0, 1.0]).double(), torch.tensor([1.0, 1.0, 2.0, 1.0, 4.0]).double()
    at = torch.cat([torch.zeros(1), cost.cumsum(0)]).tolist()
    height = torch.cat([torch.zeros(1), errors.cumsum(0)]).tolist()
    hull = [
        min(
            height[a] + (height[b] - height[a]) * (at[i] - at[a]) / (at[b] - at[a]) if b > a else height[a]
            for a, b in itertools.combinations_with_replacement(range(6), 2)
            if at[a] <= at[i] <= at[b] and (b > a or a == i)
        )
        for i in range(6)
    ]
    expected = [(hull[i + 1] - hull[i]) / (at[i + 1] - at[i]) for i in range(5)]
    assert convex(errors, cost).tolist() == pytest.approx(expected)


def test_knapsack_keeps_the_order_of_obs(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    order, allocated = scores(Obs(), llama, space, ids), scores(Knapsack(), llama, space, ids)
    for units in space.slices():
        assert torch.equal(order[units].argsort(), allocated[units].argsort())


def test_a_sublayer_alone_costs_its_output_about_its_mean(llama, space_of, ids) -> None:
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _, x, y: outputs.append(y.double().flatten(0, 1)))
        for layer in llama.model.layers
    ]
    with torch.no_grad():
        llama(input_ids=ids)
    for hook in hooks:
        hook.remove()
    expected = torch.stack([(y - y.mean(dim=0)).square().sum() / len(y) for y in outputs])
    found = scores(Obs(), llama, space_of(llama, Mlp()), ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


def test_a_ridge_of_nothing_is_refused(llama, space_of, ids) -> None:
    with pytest.raises(ConfigError, match="ridge=0 is not allowed"):
        scores(Obs(ridge=0.0), llama, space_of(llama, Mlp()), ids)


def test_bonsai_finds_what_units_add_to_a_loss_that_is_linear_in_them() -> None:
    rng = torch.Generator().manual_seed(0)
    kept = (torch.rand(200, 12, generator=rng) < 0.5).double()
    worth = torch.randn(12, generator=rng).double()
    prior = torch.rand(12, generator=rng).double()
    torch.testing.assert_close(coefficients(kept, kept @ worth, prior), worth, rtol=0.01, atol=0.01)


def test_bonsai_counts_its_masks_and_keeps_what_its_prior_keeps(llama, space_of, ids) -> None:
    space, calibration = space_of(llama, Channel()), calibration_for(llama, ids)
    found = Bonsai(masks=6, windows=2, share=0.25).score(llama, space, calibration)
    wanda = scores(Symbolic("wanda", "readers"), llama, space, ids)
    assert calibration.forward_passes == 1 + 6
    for units in space.slices():
        assert set(found[units].topk(35).indices.tolist()) == set(wanda[units].topk(35).indices.tolist())


@pytest.mark.parametrize("wrong", ["abs(", "1 + 2", "W.T", "open('x')", "exp(W, W)", "W if W else X", "W ** True", "Y"])
def test_symbolic_refuses_what_is_no_expression_of_what_was_measured(wrong) -> None:
    with pytest.raises(ConfigError, match="give pruner-zero"):
        Symbolic(wrong)
