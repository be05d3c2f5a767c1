"""Families of policies: the budget holds, gradients are carried over exactly, and a search learns with each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polyprune_core.config.grid import cell_id
from polyprune_core.config.parsing import parse
from polyprune_core.config.presets import PRESETS
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.errors import ConfigError
from polyprune_core.plugins.registry import load_registry
from polyprune_core.plugins.validation import check_estimator
from polyprune_core.pruning.budget import SelectionRule, select
from polyprune_core.pruning.scaling import scale as scaled
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import Scores
from polyprune_core.runs.preflight import settled
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.optimizer import cosine, ramp, stepped
from polyprune_core.search.trace import expected_sparsity
from polyprune_plugins.estimators.antithetic import Antithetic
from polyprune_plugins.estimators.arm import ARM
from polyprune_plugins.estimators.reinforce import Reinforce
from polyprune_plugins.estimators.rloo import RLOO
from polyprune_plugins.policies.gaussian import BoundGaussian, Gaussian
from polyprune_plugins.policies.hierarchical import Hierarchical
from polyprune_plugins.policies.logits import Logits
from polyprune_plugins.policies.probabilities import Probabilities
from tests.rows import cell as made_cell
from tests.unit.test_search import FakeObjective, batches

FAMILIES = {"probabilities": Probabilities, "logits": Logits, "hierarchical": Hierarchical, "gaussian": Gaussian}
by_family = pytest.mark.parametrize("name", sorted(FAMILIES))
bernoulli = pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"gaussian"}))
by_scope = pytest.mark.parametrize("scope", ["kind", "global", "layer"])


@pytest.fixture(scope="module")
def space(make_space):
    channels = [("channel", layer, 24, 12) for layer in range(3)]
    return make_space(*channels, *[("head", layer, 4, 72) for layer in range(3)])


def scores(space, seed: int = 0) -> Scores:
    values = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) + 0.1 * space.layer
    return Scores(values, "metric")


def family(name: str, space, sparsity: float = 0.4, scope: str = "kind", **changes):
    return FAMILIES[name](**changes).bind(PolicyStart(space, scores(space), SelectionRule(sparsity, scope)))


def gaussian(space, scope: str = "kind", **options) -> BoundGaussian:
    return Gaussian(**options).bind(PolicyStart(space, scores(space), SelectionRule(0.4, scope)))


@bernoulli
@by_scope
def test_every_bernoulli_family_starts_at_the_policy_of_the_metric(space, name, scope) -> None:
    made = family(name, space, scope=scope)
    expected = PolicyStart(space, scores(space), SelectionRule(0.4, scope)).keep_prob()
    torch.testing.assert_close(made.policy(made.start(), 0.4).keep_prob, expected, rtol=0, atol=2e-3)


@bernoulli
@by_scope
def test_whatever_the_parameters_the_projection_is_within_the_budget(space, name, scope) -> None:
    made = family(name, space, scope=scope)
    wild = made.start() + torch.randn(len(made.start()), generator=torch.Generator().manual_seed(1))
    for sparsity in (0.1, 0.4, 0.9):
        policy = made.policy(made.project(wild, sparsity), sparsity)
        assert expected_sparsity(policy, space) >= sparsity - 1e-5


@bernoulli
def test_gradients_are_carried_over_by_the_chain_rule(space, name) -> None:
    made = family(name, space)
    parameters = made.start() * 0.7
    worth = torch.randn(len(space), generator=torch.Generator().manual_seed(2))
    leaf = parameters.clone().requires_grad_(True)
    (made.policy(leaf, 0.4).keep_prob @ worth).backward()
    torch.testing.assert_close(made.gradient(made.policy(parameters, 0.4), worth), leaf.grad, rtol=1e-4, atol=1e-6)


@bernoulli
def test_the_fisher_information_is_that_of_the_masks(space, name) -> None:
    made = family(name, space)
    policy = made.policy(made.start(), 0.4)
    batch = policy.sample(20_000, torch.Generator().manual_seed(3))
    scores_of_masks = torch.stack([made.gradient(policy, row) for row in policy.score_function(batch)])
    found = scores_of_masks.square().mean(dim=0)
    torch.testing.assert_close(found, made.fisher(policy), rtol=0.15, atol=1e-3)


@by_scope
@pytest.mark.parametrize("scale", ["uniform", "raw", "zscore", "per-parameter"])
def test_a_gaussian_policy_starts_about_where_the_metric_alone_would_cut(space, scope, scale) -> None:
    made = gaussian(space, scope, start=scale)
    found = select(made.ranking(made.start()), space, 0.4, scope)
    own = "layer" if scale == "uniform" else "kind" if scale == "zscore" and scope == "global" else scope
    alone = select(scaled(scores(space).values, space, "raw" if scale == "uniform" else scale), space, 0.4, own)
    assert (found.keep ^ alone.keep).float().mean() < 0.15


@by_scope
def test_every_mask_of_a_gaussian_policy_is_an_exact_selection(space, scope) -> None:
    made = gaussian(space, scope)
    policy = made.policy(made.start(), 0.4)
    masks = policy.sample(20, torch.Generator().manual_seed(4)).masks
    assert len(masks.unique(dim=0)) >= 3
    for mask in masks:
        spent = float(space.cost[mask].sum()) / space.total_cost
        assert 0.6 - 72 * 2 / space.total_cost <= spent <= 0.6 + 1e-9


def test_within_a_group_the_metric_orders_the_units(space) -> None:
    made = gaussian(space)
    offsets = made.start() + torch.randn(len(made.start()), generator=torch.Generator().manual_seed(5))
    ranking = made.ranking(offsets)
    for where in space.slices():
        assert ranking[where].argsort().tolist() == scores(space).values[where].argsort().tolist()
    assert len(offsets) == len(space.kinds) + len(space.groups)


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_gaussian_antithetic_pairs_mirror_and_the_gradient_is_unbiased(space, progress) -> None:
    made = gaussian(space, "global")
    whole = torch.ones(len(space), dtype=torch.bool)
    # The loss below is of the offsets, whatever they select.
    policy = replace(made.policy(made.start(), 0.4, progress), mask_of=lambda _: whole)
    batch = Antithetic().sample(policy, 6, torch.Generator().manual_seed(6))
    assert torch.equal(batch.noise[0::2], -batch.noise[1::2])
    # A loss linear in the offsets: its gradient is the slope, whatever the smoothing, where offsets move at all.
    slope = torch.randn(len(policy.parameters), generator=torch.Generator().manual_seed(7))
    for estimator in (Antithetic(), RLOO(), Reinforce()):
        batch = estimator.sample(policy, 20_000, torch.Generator().manual_seed(8))
        losses = (policy.parameters + policy.sigma * batch.noise) @ slope
        found, _ = estimator.gradient(policy, batch, losses, None)
        torch.testing.assert_close(found, torch.where(policy.sigma > 0, slope, 0.0), rtol=0, atol=0.2)


def test_kinds_that_share_a_budget_are_weighed_first_and_stand_still_afterwards(space) -> None:
    kinds = len(space.kinds)
    together = gaussian(space, "global")
    for progress, moving in (
        (0.0, slice(kinds)),
        (0.09, slice(kinds)),
        (0.1, slice(kinds, None)),
        (1.0, slice(kinds, None)),
    ):
        sigma = together.policy(together.start(), 0.4, progress).sigma
        moves = torch.zeros_like(sigma, dtype=torch.bool)
        moves[moving] = True
        assert torch.equal(sigma > 0, moves)
    apart = gaussian(space, "kind")
    assert torch.equal(apart.policy(apart.start(), 0.4, 0.0).sigma > 0, torch.arange(len(sigma)) >= kinds)


def test_an_optimizer_leaves_a_parameter_without_a_direction_where_it_is() -> None:
    _, memory = stepped("adam", torch.zeros(2), torch.tensor([1.0, 1.0]), 0.1, {})
    moved, _ = stepped("adam", torch.zeros(2), torch.tensor([0.0, 1.0]), 0.1, memory)
    assert moved[0] == 0.0
    assert moved[1] < 0.0


@by_family
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_search_learns_with_every_family(space, name, optimizer) -> None:
    # Layer 0 is worth much more than its metric says.
    worth = torch.where(space.layer == 0, 1.0, 0.2) * space.cost.float() / space.cost.float().mean()
    objective = FakeObjective(space, lambda masks, ids: 20 + ids.float().mean() / 10 - masks.float() @ worth)
    made = family(name, space)
    options = SearchOptions(
        steps=150, masks_per_step=8, learning_rate=0.05, sparsity=0.4,
        precondition="natural", optimizer=optimizer,
    )  # fmt: skip
    start = select(made.ranking(made.start()), space, 0.4, "kind").keep
    learned, _ = search(
        made, made.start(), objective, Antithetic(), batches(), options, torch.Generator().manual_seed(0)
    )
    kept = select(made.ranking(learned), space, 0.4, "kind").keep
    assert float(kept.float() @ worth) > float(start.float() @ worth) + 1


@pytest.mark.parametrize("averaging", [0.0, 0.5, 1.0])
def test_averaging_takes_the_mean_of_the_last_parameters(space, averaging) -> None:
    made = family("logits", space)
    seen = []
    project = made.project
    object.__setattr__(made, "project", lambda given, sparsity: seen.append(project(given, sparsity)) or seen[-1])
    objective = FakeObjective(space, lambda masks, ids: -masks.float().sum(dim=1))
    options = SearchOptions(steps=10, masks_per_step=2, learning_rate=0.5, sparsity=0.4, averaging=averaging)
    learned, _ = search(made, made.start(), objective, RLOO(), batches(), options, torch.Generator().manual_seed(0))
    last = seen[:10][-max(1, round(10 * averaging)) :]
    torch.testing.assert_close(learned, project(torch.stack(last).mean(dim=0), 0.4), rtol=0, atol=1e-4)


def test_the_sparsity_rises_along_a_cubic_and_the_rate_falls_along_a_cosine() -> None:
    assert [ramp(0.4, step, 10, 0.0) for step in (0, 9)] == [0.4, 0.4]
    rising = [ramp(0.4, step, 10, 0.5) for step in range(10)]
    assert rising[:5] == sorted(rising[:5])
    assert rising[0] == pytest.approx(0.4 * (1 - 0.8**3))
    assert rising[4:] == [0.4] * 6
    assert cosine(2.0, 0, 10) == 2.0
    assert cosine(2.0, 5, 10) == pytest.approx(1.0)


def test_an_optimizer_goes_on_from_what_it_remembers() -> None:
    start, direction = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    once, memory = stepped("adam", start, direction, 0.1, {})
    torch.testing.assert_close(once, torch.tensor([-0.1, 0.1, 0.0]))
    again, _ = stepped("adam", once, -direction, 0.1, memory)
    fresh, _ = stepped("adam", once, -direction, 0.1, {})
    assert not torch.equal(again, fresh)
    torch.testing.assert_close(stepped("sgd", start, direction, 0.1, {})[0], -0.1 * direction)


def test_an_estimator_for_independent_units_is_refused_where_they_are_not() -> None:
    with pytest.raises(ConfigError, match=r"arm.*independently.*--policy"):
        check_estimator("arm", ARM(), 2, "gaussian", independent=False)
    check_estimator("arm", ARM(), 2, "hierarchical")


def test_a_preset_sets_what_is_not_given_and_is_no_part_of_a_cells_identity() -> None:
    paper = parse(Comparison, {"preset": "paper"})
    assert (paper.policy, paper.precondition, paper.learning_rate) == ("probabilities", "none", 2e-3)
    released = parse(Comparison, {"preset": "released"})
    assert (released.precondition, released.policy) == ("half-natural", "probabilities:start=sigmoid-norm-released")
    assert parse(Comparison, {"preset": "paper", "learning_rate": 0.5}).learning_rate == 0.5
    assert parse(Pruning, {"preset": "paper"}).as_comparison().precondition == "none"
    assert (paper.initializers, parse(Pruning, {"preset": "paper"}).initializer) == (("wanda",), "wanda")
    assert (parse(Comparison, {}).initializers, parse(Pruning, {}).initializer) == (("thinet",), "thinet")
    with pytest.raises(ConfigError, match=r"--preset.*paper"):
        parse(Comparison, {"preset": "papr"})
    cell = made_cell(kind="search", estimator="rloo")
    spelled_out = parse(Comparison, {name: value for name, value in PRESETS["paper"].items() if name != "initializer"})
    assert cell_id(cell, paper, {}) == cell_id(cell, spelled_out, {})
    assert cell_id(cell, paper, {}) != cell_id(cell, parse(Comparison, {}), {})


def test_a_policy_brings_its_own_step_and_scope_unless_told() -> None:
    def asked(config: Comparison) -> tuple[Any, ...]:
        found = settled(config, load_registry())
        return found.optimizer, found.learning_rate, found.search_scopes

    assert asked(parse(Comparison, {})) == ("adam", 0.15, ("global",))
    assert asked(parse(Comparison, {"policy": "logits"})) == ("sgd", 1e-3, ("kind",))
    told = parse(Pruning, {"policy": "logits", "optimizer": "adam", "scope": "layer"}).as_comparison()
    assert asked(told) == ("adam", 1e-3, ("layer",))
    assert asked(settled(told, load_registry())) == asked(told)


@pytest.mark.parametrize(("repair", "text"), [("none,bias", "builtin:pydocs"), ("none,least-squares", "builtin:mix")])
def test_weights_are_fitted_to_several_texts_unless_told(repair: str, text: str) -> None:
    asked = parse(Comparison, {"repair": repair.split(",")})
    assert settled(asked, load_registry()).calibration == text
    told = asked.model_copy(update={"calibration": "mine.txt"})
    assert settled(told, load_registry()).calibration == "mine.txt"


@pytest.mark.parametrize(
    ("granularity", "there", "left_out"),
    [("head+channel", "wanda", {"reap", "sleb"}), ("expert", "reap", {"sleb"}), ("layer", "sleb", {"reap"})],
)
def test_all_baselines_are_those_that_score_what_is_asked_for(granularity: str, there: str, left_out: set[str]) -> None:
    asked = parse(Comparison, {"granularity": [granularity], "baselines": ["all"]})
    found = set(settled(asked, load_registry()).baselines)
    assert there in found
    assert not left_out & found
