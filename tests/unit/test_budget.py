"""The projection is the nearest point of the budget set; the selection is the best that fits, whatever the ties."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from polyprune_core.config.budget_spec import check_sparsity
from polyprune_core.errors import BudgetError
from polyprune_core.pruning.budget import SelectionRule, select
from polyprune_core.pruning.pools import SCOPES, pools
from polyprune_core.pruning.projection import project
from polyprune_core.pruning.types import EPS
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head

scopes = pytest.mark.parametrize("scope", sorted(SCOPES))


@pytest.fixture(scope="module")
def mixed(make_space):
    """Three layers of 3 heads and 8 channels in blocks of 3 (the last block smaller), and one whole sublayer each."""
    return make_space(
        *[("head", layer, 3, 40) for layer in range(3)],
        *[("channel", layer, 8, 6, 3) for layer in range(3)],
        *[("mlp", layer, 5, 20, 5, 7) for layer in range(3)],
    )


@pytest.fixture(scope="module")
def equal(make_space):
    """Four layers of 10 channels of one cost."""
    return make_space(*[("channel", layer, 10, 12) for layer in range(4)])


@scopes
def test_a_budget_selects_as_it_says(mixed, scope) -> None:
    found, expected = (
        SelectionRule(0.3, scope, 2).select(draw(mixed, 0), mixed),
        select(draw(mixed, 0), mixed, 0.3, scope, 2),
    )
    assert torch.equal(found.keep, expected.keep)
    assert (found.kept_cost, found.total_cost) == (expected.kept_cost, expected.total_cost)


def draw(space, seed: int, spread: float = 1.0) -> torch.Tensor:
    return 0.5 + spread * torch.randn(len(space), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shares(space, values: torch.Tensor, scope: str) -> list[float]:
    """Returns the kept fraction of parameters of every pool."""
    return [float(space.cost[pool] @ values[pool].double() / space.cost[pool].sum()) for pool in pools(space, scope)]


def test_the_pools_of_a_scope_part_all_units(mixed) -> None:
    expected = {"kind": 3, "global": 1, "layer": 3 + 3 + 1}  # whole sublayers are alone in theirs: one pool together
    for scope in SCOPES:
        found = pools(mixed, scope)
        assert len(found) == expected[scope]
        assert torch.equal(torch.cat(found).sort().values, torch.arange(len(mixed)))


@scopes
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("spread", [0.05, 1.0, 30.0])
def test_the_projection_meets_the_optimality_conditions_of_the_nearest_point(mixed, scope, sparsity, spread) -> None:
    values = draw(mixed, 1, spread)
    s = project(values, mixed, sparsity, scope)
    for pool in pools(mixed, scope):
        cost, here, moved = mixed.cost[pool], s[pool], values[pool] - s[pool]
        slack = (1 - sparsity) * float(cost.sum()) - float(cost @ here)
        assert slack > -1e-9 * float(cost.sum())
        # Stationarity: values - s = v * cost + (normal of the box), with v >= 0, and v = 0 unless the budget binds.
        free = (here > EPS + 1e-12) & (here < 1 - EPS - 1e-12)
        v = float((moved[free] / cost[free]).mean()) if free.any() else 0.0
        assert v > -1e-12
        if slack > 1e-6 * float(cost.sum()):
            assert v < 1e-12
        torch.testing.assert_close(moved[free], v * cost[free], rtol=0, atol=1e-9)
        if free.any():
            assert (moved[here <= EPS + 1e-12] <= v * cost[here <= EPS + 1e-12] + 1e-9).all()
            assert (moved[here >= 1 - EPS - 1e-12] >= v * cost[here >= 1 - EPS - 1e-12] - 1e-9).all()


@scopes
@pytest.mark.parametrize("seed", range(3))
def test_the_projection_agrees_with_a_general_solver(mixed, scope, seed) -> None:
    values, sparsity = draw(mixed, seed, 0.6), 0.45
    cost = (mixed.cost / mixed.cost.mean()).numpy()
    limits = [
        {"type": "ineq", "fun": lambda x, c=cost[pool], p=pool: (1 - sparsity) * c.sum() - c @ x[p]}
        for pool in (indices.numpy() for indices in pools(mixed, scope))
    ]
    found = minimize(
        lambda x: 0.5 * np.square(x - values.numpy()).sum(),
        np.full(len(mixed), 0.5),
        jac=lambda x: x - values.numpy(),
        bounds=[(EPS, 1 - EPS)] * len(mixed),
        constraints=limits,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    # What SLSQP reaches; the projection itself is exact.
    np.testing.assert_allclose(project(values, mixed, sparsity, scope).numpy(), found.x, atol=1e-6)


@scopes
def test_the_projection_spends_the_whole_budget_where_it_binds(mixed, scope) -> None:
    s = project(draw(mixed, 2) + 5, mixed, 0.4, scope)
    for share in shares(mixed, s, scope):
        assert share == pytest.approx(0.6, abs=1e-12)


@scopes
def test_values_within_the_budget_only_meet_the_box(mixed, scope) -> None:
    values = torch.rand(len(mixed), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    values[0] = -2
    assert torch.equal(project(values, mixed, 0.5, scope), values.clamp(EPS, 1 - EPS))


@scopes
@pytest.mark.parametrize("seed", range(4))
def test_projecting_twice_is_projecting_once(mixed, scope, seed) -> None:
    once = project(draw(mixed, seed), mixed, 0.3, scope)
    # The budget is met to the last bits of a sum, which the second projection may still move.
    torch.testing.assert_close(project(once, mixed, 0.3, scope), once, rtol=0, atol=1e-12)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6),
    st.floats(0.001, 0.9985),
    st.lists(st.integers(1, 10_000_000), min_size=6, max_size=6),
)
def test_the_projection_stays_within_box_and_budget(make_space, values, sparsity, costs) -> None:
    space = make_space(*[("channel", layer, 1, cost) for layer, cost in enumerate(costs)])
    s = project(torch.tensor(values, dtype=torch.float64), space, sparsity, "global")
    assert ((s >= EPS) & (s <= 1 - EPS)).all()
    assert shares(space, s, "global")[0] <= max(1 - sparsity, EPS) + 1e-9


@pytest.mark.parametrize("sparsity", [0.998, 0.999, 0.9995, 0.999999])
def test_a_budget_below_the_lowest_probability_gives_that_probability(equal, sparsity) -> None:
    s = project(draw(equal, 0), equal, sparsity, "kind")
    assert float(s.mean()) == pytest.approx(max(1 - sparsity, EPS), abs=1e-12)


@pytest.mark.parametrize("sparsity", [EPS, 1 - EPS])
def test_a_budget_at_either_end_of_the_box_is_met_too(make_space, sparsity) -> None:
    space = make_space(("head", 0, 2, 30), ("channel", 0, 4, 7))
    for seed in range(300):
        values = 10.0 ** (seed % 5 - 2) * draw(space, seed)
        s = project(values, space, sparsity, "global")
        assert shares(space, s, "global")[0] <= 1 - sparsity + 1e-9


def test_float32_values_give_float32_probabilities_strictly_between_0_and_1(mixed) -> None:
    s = project(draw(mixed, 3, 100).float(), mixed, 0.5, "kind")
    assert s.dtype == torch.float32
    assert 0 < s.min() < s.max() < 1


def test_the_projection_does_not_change_its_input(mixed) -> None:
    values = draw(mixed, 3)
    kept = values.clone()
    project(values, mixed, 0.5, "kind")
    assert torch.equal(values, kept)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_equal_costs_and_no_margin_give_the_bisection_of_probmask(equal, seed, sparsity) -> None:
    values = draw(equal, seed)
    budget = (1 - sparsity) * len(equal)
    low, high = 0.0, float(values.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((values - middle).clamp(0, 1).sum()) > budget else (low, middle)
    reference = (values - max(0.0, high)).clamp(0, 1)
    found = project(values, equal, sparsity, "kind", eps=1e-12)
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-9)


def test_a_dearer_unit_is_lowered_in_proportion_to_its_cost(make_space) -> None:
    space = make_space(("head", 0, 1, 300), ("channel", 0, 1, 100))
    values = torch.tensor([0.8, 0.8], dtype=torch.float64)
    down = values - project(values, space, 0.5, "global")
    assert float(down[0] / down[1]) == pytest.approx(3.0, abs=1e-9)


def test_no_unit_gains_by_the_projection_beyond_the_box(mixed) -> None:
    values = draw(mixed, 5)
    assert (project(values, mixed, 0.5, "kind") <= values.clamp(EPS, 1 - EPS)).all()


# Selection.


def fits(space, keep: torch.Tensor, sparsity: float, pool: torch.Tensor) -> bool:
    return float(space.cost[pool][keep[pool]].sum()) <= (1 - sparsity) * float(space.cost[pool].sum()) * (1 + 1e-9)


tied_scores = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=21, max_size=21)


@scopes
@given(scores=tied_scores, sparsity=st.floats(0.01, 0.99))
def test_a_selection_never_exceeds_its_budget_and_leaves_out_nothing_that_fits(mixed, scope, scores, sparsity) -> None:
    values = torch.tensor(scores)
    chosen = select(values, mixed, sparsity, scope, min_keep=0)
    assert chosen.kept_cost == int(mixed.cost[chosen.keep].sum())
    assert chosen.total_cost == int(mixed.cost.sum())
    assert chosen.sparsity >= sparsity - 1e-9
    for pool in pools(mixed, "kind" if scope == "layer" else scope):
        assert fits(mixed, chosen.keep, sparsity, pool)
        for unit in pool[~chosen.keep[pool]].tolist():
            more = chosen.keep.clone()
            more[unit] = True
            assert not fits(mixed, more, sparsity, pool) or math.isclose(
                float(mixed.cost[pool][more[pool]].sum()), (1 - sparsity) * float(mixed.cost[pool].sum()), rel_tol=1e-8
            )


@scopes
@given(scores=tied_scores, sparsity=st.floats(0.01, 0.6))
def test_the_floor_holds_in_every_group_of_more_than_one_unit(mixed, scope, scores, sparsity) -> None:
    values = torch.tensor(scores)
    chosen = select(values, mixed, sparsity, scope, min_keep=1)
    for where, group in zip(mixed.slices(), mixed.groups, strict=True):
        if group.count > 1:
            best = int(values[where].argmax())
            assert chosen.keep[where][best] or values[where][chosen.keep[where]].max() == values[where].max()
    for pool in pools(mixed, "kind" if scope == "layer" else scope):
        assert fits(mixed, chosen.keep, sparsity, pool)


@given(scores=st.permutations(range(40)), sparsity=st.integers(1, 99))
def test_units_of_one_cost_are_kept_in_the_exact_number_and_best_first(equal, scores, sparsity) -> None:
    values = torch.tensor(scores, dtype=torch.float32)
    chosen = select(values, equal, sparsity / 100, "kind", min_keep=0)
    count = (100 - sparsity) * 40 // 100
    assert chosen.kept_cost == 12 * count
    assert torch.equal(chosen.keep, values >= 40 - count)


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_all_scores_equal_still_keeps_the_exact_number(equal, scope, sparsity) -> None:
    chosen = select(torch.zeros(40), equal, sparsity, scope)
    assert int(chosen.keep.sum()) == round((1 - sparsity) * 40)


def test_ties_go_in_unit_order(equal) -> None:
    chosen = select(torch.zeros(40), equal, 0.5, "kind", min_keep=0)
    assert torch.equal(chosen.keep, torch.arange(40) < 20)


def test_the_released_codes_tie_that_keeps_everything_keeps_the_budget_here(make_space) -> None:
    space = make_space(("channel", 0, 1000, 3))
    scores = torch.cat([torch.ones(450), torch.zeros(550)])
    chosen = select(scores, space, 0.5, "kind")
    assert int(chosen.keep.sum()) == 500
    assert chosen.keep[:450].all()


def test_units_are_taken_by_score_and_those_too_dear_are_skipped(make_space) -> None:
    space = make_space(*[("mlp", layer, 1, cost) for layer, cost in enumerate([50, 60, 30, 15, 5])])
    chosen = select(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), space, 0.5, "global")  # budget 80
    assert chosen.keep.tolist() == [True, False, True, False, False]
    assert (chosen.kept_cost, chosen.total_cost) == (80, 160)
    assert chosen.sparsity == 0.5


def test_scope_global_lets_one_kind_give_what_another_needs(make_space) -> None:
    space = make_space(("head", 0, 4, 100), ("channel", 0, 40, 10))
    scores = torch.cat([torch.zeros(4), torch.ones(40)])
    assert select(scores, space, 0.5, "global", min_keep=0).keep.tolist() == [False] * 4 + [True] * 40
    by_kind = select(scores, space, 0.5, "kind", min_keep=0).keep
    assert (int(by_kind[:4].sum()), int(by_kind[4:].sum())) == (2, 20)


@given(scores=st.permutations(range(40)), sparsity=st.integers(1, 90))
def test_scope_layer_gives_each_layer_its_share_and_the_exact_total(equal, scores, sparsity) -> None:
    values = torch.tensor(scores, dtype=torch.float32)
    chosen = select(values, equal, sparsity / 100, "layer")
    whole = max(1, (100 - sparsity) * 10 // 100)
    counts = [int(chosen.keep[where].sum()) for where in equal.slices()]
    assert sum(counts) == (100 - sparsity) * 40 // 100
    assert all(count in (whole, whole + 1) for count in counts)
    for where, count in zip(equal.slices(), counts, strict=True):
        assert set(values[where].topk(count).indices.tolist()) == set(chosen.keep[where].nonzero().flatten().tolist())


def test_in_scope_layer_what_is_left_over_goes_to_the_best_waiting_units(equal) -> None:
    values = torch.arange(10.0).repeat(4) + torch.tensor([0.0, 0.3, 0.1, 0.2]).repeat_interleave(10)
    chosen = select(values, equal, 0.65, "layer")  # 14 of 40: 3 a layer and 2 over
    assert [int(chosen.keep[where].sum()) for where in equal.slices()] == [3, 4, 3, 4]


def test_scope_layer_ranks_whole_sublayers_over_all_layers(make_space) -> None:
    space = make_space(*[("mlp", layer, 4, 25, 4) for layer in range(4)])
    assert select(torch.tensor([1.0, 4.0, 2.0, 3.0]), space, 0.5, "layer").keep.tolist() == [False, True, False, True]


@scopes
def test_the_floor_is_the_best_of_each_group(make_space, scope) -> None:
    space = make_space(*[("channel", layer, 10, 1) for layer in range(3)])
    scores = torch.cat([torch.arange(10.0), 100 + torch.arange(10.0), 200 + torch.arange(10.0)])
    chosen = select(scores, space, 0.5, scope, min_keep=2)
    assert chosen.keep[torch.tensor([8, 9, 18, 19, 28, 29])].all()
    assert int(chosen.keep.sum()) == 15


@scopes
@pytest.mark.parametrize("min_keep", [0, 1, 8])
def test_the_one_head_of_multi_query_attention_may_go_whatever_the_floor(tiny, space_of, scope, min_keep) -> None:
    space = space_of(tiny("llama", num_key_value_heads=1), Head(), Channel())
    heads = space.kind == space.kinds.index("head")
    scores = torch.where(heads, space.layer.float() - 1, 0.5)  # the head of the first layer is the worst of all units
    kept = select(scores, space, 0.4, scope, min_keep).keep
    assert int(heads.sum()) == space.layout.num_layers == 3
    assert kept[heads].tolist()[0] is False
    channels = [kept[where] for where, group in zip(space.slices(), space.groups, strict=True) if group.count > 1]
    assert all(int(part.sum()) >= min_keep for part in channels)


def test_a_floor_larger_than_a_group_keeps_the_group(make_space) -> None:
    space = make_space(("head", 0, 2, 1), ("channel", 0, 10, 1))
    assert select(torch.zeros(12), space, 0.5, "global", min_keep=3).keep[:2].all()


@scopes
def test_a_floor_that_costs_more_than_the_budget_is_refused(make_space, scope) -> None:
    space = make_space(*[("head", layer, 3, 40) for layer in range(3)])
    with pytest.raises(BudgetError, match=r"sparsity 0\.8 cannot be met.*33\.3%.*sparsity 0\.666 or less"):
        select(torch.zeros(9), space, 0.8, scope)


@scopes
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_sparsity_that_a_refusal_recommends_can_be_met(make_space, scope, order) -> None:
    rows = [("head", 0, 3, 40), ("channel", 0, 40, 6)]
    space = make_space(*[rows[i] for i in order])
    with pytest.raises(BudgetError) as refusal:
        select(torch.zeros(len(space)), space, 0.99, scope)
    advice = float(re.search(r"Use sparsity (\S+) or less", str(refusal.value)).group(1))
    chosen = select(torch.zeros(len(space)), space, advice, scope)
    assert chosen.sparsity >= advice


@pytest.mark.parametrize("sparsity", [0, 0.0, 1, 1.0, 1.5, -1, -0.1, math.nan, math.inf, -math.inf])
def test_a_sparsity_that_is_no_fraction_is_refused_with_what_was_given(sparsity) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"sparsity {sparsity:g} is not")):
        check_sparsity(sparsity)


@pytest.mark.parametrize("sparsity", [1e-9, 0.2, 0.5, 0.999999])
def test_a_fraction_comes_back_unchanged(sparsity) -> None:
    assert check_sparsity(sparsity) == sparsity
