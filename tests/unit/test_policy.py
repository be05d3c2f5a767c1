"""Scores made comparable, and scores turned into keep probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import SCOPES, pools
from polyprune_core.pruning.projection import project
from polyprune_core.pruning.scaling import SCALES, scale
from polyprune_core.pruning.starting import PROBABILITIES, PolicyStart
from polyprune_core.pruning.types import EPS, Policy, Scores
from polyprune_core.search.trace import entropy, expected_sparsity


def started(values, space, sparsity, scope, how="sigmoid-norm", comparable=False) -> Policy:
    """Returns the policy that a metric's values start."""
    start = PolicyStart(space, Scores(values, "metric", comparable), SelectionRule(sparsity, scope))
    return Policy(start.keep_prob(how))


hows = pytest.mark.parametrize("how", sorted(PROBABILITIES))


@pytest.fixture(scope="module")
def space(make_space):
    """Three layers of 8 heads and 20 channels, and three whole sublayers that are peers of each other."""
    return make_space(
        *[("head", layer, 8, 40) for layer in range(3)],
        *[("channel", layer, 20, 6) for layer in range(3)],
        *[("mlp", layer, 5, 20, 5, 7) for layer in range(3)],
    )


@pytest.fixture(scope="module")
def scores(space) -> torch.Tensor:
    """Scores whose size and spread differ by layer and kind."""
    values = torch.randn(len(space), generator=torch.Generator().manual_seed(0)).exp()
    return values * (1 + 10 * space.layer) + 100 * space.kind


def peers(space) -> list[torch.Tensor]:
    return [(space.peers == label).nonzero().flatten() for label in space.peers.unique().tolist()]


@pytest.mark.parametrize("how", ["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "uniform"])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_the_mean_of_every_layer_and_kind_is_the_keep_rate(space, scores, how, keep) -> None:
    probability = PROBABILITIES[how](scores, space.peers, keep)
    for where in peers(space):
        assert float(probability[where].double().mean()) == pytest.approx(keep, abs=1e-6)  # float32 values


@pytest.mark.parametrize(("how", "correction"), [("sigmoid-norm", 0), ("sigmoid-norm-released", 1)])
def test_sigmoid_norm_is_the_shifted_sigmoid_of_the_z_score(space, scores, how, correction) -> None:
    found = PROBABILITIES[how](scores, space.peers, 0.7)
    for where in peers(space):
        x = scores[where].double()
        p = torch.sigmoid((x - x.mean()) / x.std(correction=correction))
        torch.testing.assert_close(found[where].double(), p + 0.7 - p.mean(), rtol=0, atol=1e-6)


def test_min_max_norm_is_the_shifted_position_between_least_and_greatest(space, scores) -> None:
    found = PROBABILITIES["min-max-norm"](scores, space.peers, 0.7)
    for where in peers(space):
        x = scores[where].double()
        p = (x - x.min()) / (x.max() - x.min())
        # Scores of 100 and a spread of about 1: float32 leaves five digits of a difference.
        torch.testing.assert_close(found[where].double(), p + 0.7 - p.mean(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("keep", "of_eight", "of_twenty", "of_three"), [(0.5, 4, 10, 2), (0.25, 2, 5, 1), (0.7, 6, 14, 2)]
)
def test_const_gives_every_unit_the_metric_would_keep_the_same_trust(
    space, scores, keep, of_eight, of_twenty, of_three
) -> None:
    found = PROBABILITIES["const"](scores, space.peers, keep)
    counts = {8: of_eight, 20: of_twenty, 3: of_three}
    for where in peers(space):
        best = scores[where].topk(counts[len(where)]).indices
        expected = torch.full((len(where),), 0.1)
        expected[best] = 0.9
        torch.testing.assert_close(found[where], expected, rtol=0, atol=1e-7)


def test_uniform_ignores_the_metric(space, scores) -> None:
    assert torch.equal(PROBABILITIES["uniform"](scores, space.peers, 0.3), torch.full((len(space),), 0.3))


@pytest.mark.parametrize("how", ["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "const"])
def test_within_a_layer_a_better_score_never_gets_a_lower_probability(space, scores, how) -> None:
    found = started(scores, space, 0.5, "kind", how).keep_prob
    for where in peers(space):
        ranked = found[where][scores[where].argsort()]
        assert (ranked.diff() >= -1e-7).all()


@pytest.mark.parametrize("how", ["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "const"])
@pytest.mark.parametrize("factor", [1e-20, 1e-12, 1e-6, 1e6, 1e12])
def test_the_unit_in_which_a_metric_is_measured_does_not_matter(space, scores, how, factor) -> None:
    """A second-order Taylor score is a squared weight times a squared gradient: 1e-10 is a common size."""
    plain = started(scores, space, 0.5, "kind", how).keep_prob
    scaled = started(factor * scores, space, 0.5, "kind", how).keep_prob
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)  # float32 scores of 100 with a spread of 1


@pytest.mark.parametrize("how", ["sigmoid-norm", "sigmoid-norm-released", "min-max-norm"])
@pytest.mark.parametrize("value", [0.0, 1e-9, 0.1, 3.7, 1e9])
def test_a_metric_that_says_nothing_gives_the_keep_rate_everywhere(space, how, value) -> None:
    found = started(torch.full((len(space),), value), space, 0.3, "kind", how).keep_prob
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=0, atol=1e-6)


@hows
@pytest.mark.parametrize("scope", sorted(SCOPES))
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.99])
def test_a_policy_is_strictly_between_0_and_1_and_within_the_budget(space, scores, how, scope, sparsity) -> None:
    policy = started(scores, space, sparsity, scope, how)
    assert policy.keep_prob.dtype == torch.float32
    assert policy.keep_prob.shape == (len(space),)
    assert 0 < policy.keep_prob.min() <= policy.keep_prob.max() < 1
    for pool in pools(space, scope):
        kept = float(space.cost[pool] @ policy.keep_prob[pool].double() / space.cost[pool].sum())
        assert kept <= 1 - sparsity + 1e-6  # float32 values


@hows
def test_a_policy_is_the_projection_of_its_probabilities(space, scores, how) -> None:
    expected = project(PROBABILITIES[how](scores, space.peers, 0.6), space, 1 - 0.6, "kind")
    torch.testing.assert_close(started(scores, space, 0.4, "kind", how).keep_prob, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("how", ["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "const"])
@pytest.mark.parametrize("scope", ["kind", "global"])
def test_scores_that_compare_layers_start_a_policy_that_does(space, scores, how, scope) -> None:
    first = (space.layer == 0) & (space.kind == 0)
    raised = scores + 1e4 * first
    within, across = (started(raised, space, 0.5, scope, how, comparable=x).keep_prob for x in (False, True))
    torch.testing.assert_close(within, started(scores, space, 0.5, scope, how).keep_prob, rtol=0, atol=1e-2)
    others = (space.layer != 0) & (space.kind == 0)
    assert across[first].min() >= across[others].max()
    assert across[first].mean() > across[others].mean() + 0.1


def test_in_scope_layer_nothing_compares_layers(space, scores) -> None:
    across = started(scores, space, 0.5, "layer", comparable=True)
    assert torch.equal(across.keep_prob, started(scores, space, 0.5, "layer").keep_prob)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=87, max_size=87), st.sampled_from(sorted(PROBABILITIES)))
def test_any_finite_scores_give_a_valid_policy(space, values, how) -> None:
    s = started(torch.tensor(values), space, 0.5, "kind", how).keep_prob
    assert ((s > 0) & (s < 1)).all()


@hows
@pytest.mark.parametrize("name", sorted(SCALES))
def test_scores_are_not_changed_in_place(space, scores, how, name) -> None:
    kept = scores.clone()
    started(scores, space, 0.5, "kind", how)
    scale(scores, space, name)
    assert torch.equal(scores, kept)


def test_z_scores_have_mean_0_and_deviation_1_in_every_layer_and_kind(space, scores) -> None:
    z = scale(scores, space, "zscore").double()
    for where in peers(space):
        assert float(z[where].mean()) == pytest.approx(0, abs=1e-5)
        assert float(z[where].std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_z_scores_of_equal_scores_are_0(space) -> None:
    for value in (0.0, 0.1, 3.7, 1e9):
        found = scale(torch.full((len(space),), value), space, "zscore")
        torch.testing.assert_close(found, torch.zeros(len(space)), rtol=0, atol=1e-6)


def test_raw_scores_stay_and_scores_per_parameter_are_divided_by_the_cost(space, scores) -> None:
    assert torch.equal(scale(scores, space, "raw"), scores)
    assert torch.equal(scale(scores, space, "per-parameter"), (scores.double() / space.cost).float())


@pytest.mark.parametrize(("p", "bits"), [(0.5, 1.0), (0.25, 2 - 0.75 * math.log2(3)), (0.75, 2 - 0.75 * math.log2(3))])
def test_the_entropy_of_known_policies(p, bits) -> None:
    assert entropy(Policy(torch.full((7,), p))) == pytest.approx(bits, abs=1e-12)


def test_the_entropy_is_a_mean_over_units_and_finite_at_the_ends() -> None:
    assert entropy(Policy(torch.tensor([0.5, 0.25]))) == pytest.approx((1 + 2 - 0.75 * math.log2(3)) / 2)
    at_the_ends = entropy(Policy(torch.tensor([EPS, 1 - EPS])))
    assert at_the_ends == pytest.approx(-(EPS * math.log2(EPS) + (1 - EPS) * math.log2(1 - EPS)), abs=1e-6)


def test_the_expected_sparsity_counts_parameters_not_units(make_space) -> None:
    space = make_space(("head", 0, 1, 300), ("channel", 0, 1, 100))
    assert expected_sparsity(Policy(torch.tensor([0.25, 0.75])), space) == pytest.approx(1 - (75 + 75) / 400)
    assert expected_sparsity(Policy(torch.tensor([0.5, 0.5])), space) == 0.5


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_a_uniform_policy_expects_exactly_the_sparsity_asked_for(space, scores, sparsity) -> None:
    policy = started(scores, space, sparsity, "kind", "uniform")
    assert expected_sparsity(policy, space) == pytest.approx(sparsity, abs=1e-6)  # float32 values
