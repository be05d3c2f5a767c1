"""The search on problems whose answer is known: a made-up objective instead of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.evaluation.losses import Metered
from polyprune_core.plugins.contracts import PRECONDITIONERS
from polyprune_core.plugins.validation import check_estimator
from polyprune_core.pruning.budget import SelectionRule, select
from polyprune_core.pruning.pools import pools
from polyprune_core.pruning.projection import project
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import MaskBatch, Policy, Scores
from polyprune_core.search.early_stopping import EarlyStopping
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.trace import entropy, expected_sparsity
from polyprune_plugins.estimators.antithetic import Antithetic
from polyprune_plugins.estimators.reinforce import Reinforce
from polyprune_plugins.estimators.reinforce_released import ReinforceReleased
from polyprune_plugins.estimators.rloo import RLOO
from polyprune_plugins.policies.probabilities import Probabilities

VOCABULARY = 97
OPTIONS = SearchOptions(steps=20, masks_per_step=4, learning_rate=0.02, sparsity=0.5, precondition="none")


class FakeObjective(Metered):
    """Losses from a function of (masks, batch), counted as the real one counts."""

    def __init__(self, space, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.space, self.loss = space, loss
        self.vocabulary = VOCABULARY

    def losses(self, masks: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        self.count(ids.numel(), passes=len(masks))
        return self.loss(masks, ids).float()


@pytest.fixture(scope="module")
def space(make_space):
    channels = [("channel", layer, 6, 12) for layer in range(2)]
    return make_space(*channels, *[("head", layer, 4, 40) for layer in range(2)])


def batches(seed: int = 0) -> Iterator[torch.Tensor]:
    """Yields batches (1, 8) whose mean is the batch's own difficulty."""
    rng = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(100, (1, 8), generator=rng)


def uniform(space, sparsity: float = 0.5) -> Policy:
    return Policy(torch.full((len(space),), 1 - sparsity))


# The better half of every group, scattered; each of them is worth five of the others.
BEST = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 1]]).flatten().bool()
BEST = torch.cat([BEST, torch.tensor([1, 0, 1, 0, 0, 1, 1, 0]).bool()])
WORTH = torch.where(BEST, 1.0, 0.2)


def planted(space) -> FakeObjective:
    """A loss linear in the mask, on top of a batch difficulty that is larger than any unit's worth."""
    return FakeObjective(space, lambda masks, ids: 20 + ids.float().mean() / 10 - masks.float() @ WORTH)


def run(space, objective=None, estimator=None, seed: int = 0, policy=None, on_step=lambda record: None, **changes):
    scope, stopping = changes.pop("scope", "kind"), changes.pop("stopping", None)
    options = replace(OPTIONS, **changes)
    learned, trace = search(
        Probabilities().bind(
            PolicyStart(space, Scores(torch.zeros(len(space)), "none"), SelectionRule(options.sparsity, scope))
        ),
        (policy or uniform(space)).keep_prob,
        objective or planted(space),
        estimator or RLOO(),
        batches(),
        options,
        torch.Generator().manual_seed(seed),
        on_step,
        stopping=stopping,
    )
    return Policy(learned), trace


ESTIMATORS = [RLOO(), Antithetic(), Reinforce(), ReinforceReleased()]
by_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


@pytest.mark.parametrize(
    ("scope", "estimator", "precondition"),
    [
        *(("kind", estimator, name) for estimator in (RLOO(), Antithetic()) for name in sorted(PRECONDITIONERS)),
        ("global", RLOO(), "half-natural"),
        ("layer", RLOO(), "half-natural"),
    ],
    ids=str,
)
def test_the_search_finds_the_planted_best_units(space, estimator, scope, precondition) -> None:
    rate = {"none": 0.005, "half-natural": 0.02, "natural": 0.04}[precondition]  # the unscaled estimate varies most
    policy, _ = run(space, estimator=estimator, steps=300, learning_rate=rate, scope=scope, precondition=precondition)
    assert torch.equal(select(policy.keep_prob, space, 0.5, scope).keep, BEST)


@by_estimator
def test_the_search_lowers_the_expected_loss(space, estimator) -> None:
    policy, _ = run(space, estimator=estimator, steps=200, learning_rate=0.01, precondition="half-natural")
    assert float((policy.keep_prob - 0.5) @ WORTH) > 1.0


@pytest.mark.parametrize("scope", ["kind", "global", "layer"])
def test_every_step_stays_within_the_budget(space, scope) -> None:
    policy, trace = run(space, scope=scope, learning_rate=1.0)
    assert all(record.expected_sparsity >= 0.5 - 1e-6 for record in trace.steps)
    for pool in pools(space, scope):
        kept = float(space.cost[pool] @ policy.keep_prob[pool].double() / space.cost[pool].sum())
        assert kept <= 0.5 + 1e-6
    assert ((policy.keep_prob > 0) & (policy.keep_prob < 1)).all()


@by_estimator
def test_the_same_seed_gives_identical_policies_and_losses(space, estimator) -> None:
    first, again, other = (run(space, estimator=estimator, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[0].keep_prob, again[0].keep_prob)
    assert [r.losses for r in first[1].steps] == [r.losses for r in again[1].steps]
    assert not torch.equal(first[0].keep_prob, other[0].keep_prob)


def test_the_policy_given_and_the_global_generator_are_left_alone(space) -> None:
    policy, before = uniform(space), torch.get_rng_state()
    run(space, policy=policy)
    assert torch.equal(policy.keep_prob, uniform(space).keep_prob)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_step_returns_the_policy_itself(space) -> None:
    policy = uniform(space)
    found, trace = run(space, policy=policy, steps=0)
    assert torch.equal(found.keep_prob, policy.keep_prob)
    assert (trace.steps, trace.forward_passes, trace.forward_tokens) == ([], 0, 0)


@dataclass(frozen=True)
class Fixed:
    """An estimator that returns what it was built with, and counts its steps in the state."""

    value: torch.Tensor
    precondition: str | None = None
    min_masks = 1
    mask_multiple = 1
    unbiased = False

    def sample(self, policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: torch.Tensor, state):
        return self.value, {"step": 1 if state is None else state["step"] + 1}


@pytest.mark.parametrize(("precondition", "power"), [("none", 0.0), ("half-natural", 0.5), ("natural", 1.0)])
def test_a_step_is_the_projection_of_a_move_against_the_preconditioned_gradient(space, precondition, power) -> None:
    s = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) * 0.4 + 0.05
    gradient = torch.randn(len(space), generator=torch.Generator().manual_seed(1))
    found, trace = run(space, estimator=Fixed(gradient), policy=Policy(s), steps=1, precondition=precondition)
    expected = project(s - 0.02 * gradient * (s * (1 - s)) ** power, space, 0.5, "kind")
    torch.testing.assert_close(found.keep_prob, expected)
    assert trace.steps[0].gradient_norm == pytest.approx(float(gradient.norm()))


def test_an_estimator_that_scales_its_own_estimate_is_taken_as_it_says(space) -> None:
    gradient = torch.randn(len(space), generator=torch.Generator().manual_seed(1))
    for own in PRECONDITIONERS:
        found = [
            run(space, estimator=Fixed(gradient, own), steps=3, precondition=option)[0].keep_prob
            for option in PRECONDITIONERS
        ]
        expected = run(space, estimator=Fixed(gradient), steps=3, precondition=own)[0].keep_prob
        assert all(torch.equal(keep_prob, expected) for keep_prob in found)


def test_only_the_released_update_brings_its_own_scale() -> None:
    assert {type(e).__name__: e.precondition for e in ESTIMATORS if e.precondition} == {"ReinforceReleased": "none"}


def test_a_plain_estimate_moves_as_the_released_update_does_under_the_half_natural_step(space) -> None:
    """At their first steps: the released update is then the leave-one-out estimate, half a natural gradient of it."""
    released, _ = run(space, estimator=ReinforceReleased(), steps=1, precondition="none")
    plain, _ = run(space, estimator=RLOO(), steps=1, precondition="half-natural")
    torch.testing.assert_close(released.keep_prob, plain.keep_prob, rtol=0, atol=1e-6)


def test_the_learning_rate_falls_along_a_cosine(space) -> None:
    s = torch.full((len(space),), 0.2)  # far from the box and the budget: the projection does nothing
    gradient, moved = torch.full((len(space),), -0.1), []
    run(space, estimator=Fixed(gradient, "none"), policy=Policy(s), steps=4, learning_rate=0.1, on_step=moved.append)
    factor = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    expected = [1 - 0.2 - 0.01 * sum(factor[:step]) for step in range(4)]
    assert [record.expected_sparsity for record in moved] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "gradient",
    [torch.zeros(3), torch.zeros(1, 20), torch.full((20,), math.nan), torch.tensor([math.inf] + [0.0] * 19)],
    ids=["wrong length", "wrong rank", "nan", "infinite"],
)
def test_a_gradient_that_its_contract_forbids_is_refused_by_name(space, gradient) -> None:
    with pytest.raises(PluginError, match=r"Fixed.* returned a gradient.*\(20,\) finite numbers are needed"):
        run(space, estimator=Fixed(gradient), steps=1)


# Losses that are not finite.


def test_a_gradient_with_which_a_step_is_no_number_is_the_estimators_fault(space) -> None:
    with pytest.raises(PluginError, match=r"returned a gradient of up to 3e[+]38, with which a step"):
        run(space, estimator=Fixed(torch.full((len(space),), 3e38)), learning_rate=100.0, steps=1)


def sometimes(space, bad: float, good: float) -> FakeObjective:
    """A loss that is not a number of use whenever the first unit is cut."""
    return FakeObjective(space, lambda masks, ids: torch.where(masks[:, 0], good, bad))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_counts_as_a_uniform_guess_at_least_and_is_reported(space, bad) -> None:
    seen = []
    _, trace = run(space, sometimes(space, bad, 3.0), steps=10, on_step=seen.append)
    guess = pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert trace.non_finite == sum(record.non_finite for record in seen) > 0
    for record in seen:
        assert all(loss in (3.0, guess) for loss in record.losses)
        assert record.non_finite == sum(loss != 3.0 for loss in record.losses)
        assert math.isfinite(record.gradient_norm)


def test_a_loss_that_is_not_finite_counts_as_the_largest_finite_one_met_so_far(space) -> None:
    series = iter([[2.0, 30.0], [2.0, math.nan], [50.0, math.inf], [math.nan, math.nan], [1.0, 2.0]])
    objective = FakeObjective(space, lambda masks, ids: torch.tensor(next(series)))
    _, trace = run(space, objective, steps=5, masks_per_step=2)
    assert [r.losses for r in trace.steps] == [(2.0, 30.0), (2.0, 30.0), (50.0, 50.0), (50.0, 50.0), (1.0, 2.0)]
    assert [r.non_finite for r in trace.steps] == [0, 1, 1, 2, 0]
    assert trace.non_finite == 4


def test_units_whose_removal_breaks_the_model_are_kept(space) -> None:
    policy, trace = run(space, sometimes(space, math.nan, 3.0), steps=200, learning_rate=0.02)
    assert policy.keep_prob[0] > 0.9
    assert trace.non_finite > 0


def test_a_step_whose_losses_are_all_equal_moves_nothing(space) -> None:
    policy, trace = run(space, FakeObjective(space, lambda masks, ids: torch.full((len(masks),), math.nan)), steps=3)
    torch.testing.assert_close(policy.keep_prob, uniform(space).keep_prob, rtol=0, atol=1e-6)
    assert trace.non_finite == 12
    assert [r.gradient_norm for r in trace.steps] == [0.0, 0.0, 0.0]


# The record.


def test_the_trace_says_what_the_search_cost_and_how_it_went(space) -> None:
    objective, seen = planted(space), []
    objective.losses(torch.ones(3, len(space), dtype=torch.bool), torch.zeros(1, 8))  # spent before: not the search's
    _, trace = run(space, objective, steps=6, on_step=seen.append)
    assert trace.steps == seen
    assert [record.step for record in seen] == [1, 2, 3, 4, 5, 6]
    assert (trace.forward_passes, trace.forward_tokens, trace.backward_passes) == (24, 24 * 8, 0)
    assert [record.forward_tokens for record in seen] == [32 * n for n in range(1, 7)]
    assert all(len(record.losses) == 4 for record in seen)
    assert seen[0].expected_sparsity == expected_sparsity(uniform(space), space)
    assert seen[0].entropy == entropy(uniform(space))
    assert len({record.entropy for record in seen}) == 6
    assert 0 < seen[0].seconds <= seen[-1].seconds <= trace.seconds


@pytest.mark.parametrize(
    ("estimator", "masks", "needs"),
    [
        (RLOO(), 1, "at least 2 masks a step, not 1"),
        (RLOO(), 0, "at least 2 masks a step, not 0"),
        (ReinforceReleased(), 1, "at least 2 masks a step, not 1"),
        (Reinforce(), 0, "at least 1 masks a step, not 0"),
        (Antithetic(), 1, "at least 2 masks a step in multiples of 2, not 1"),
        (Antithetic(), 3, "at least 2 masks a step in multiples of 2, not 3"),
        (Antithetic(), 0, "at least 2 masks a step in multiples of 2, not 0"),
    ],
)
def test_too_few_or_unpaired_masks_are_refused_with_what_is_needed(estimator, masks, needs) -> None:
    with pytest.raises(ConfigError, match=f"'name' needs {needs}; change --masks-per-step"):
        check_estimator("name", estimator, masks)


@pytest.mark.parametrize(("estimator", "masks"), [(RLOO(), 2), (RLOO(), 3), (Reinforce(), 1), (Antithetic(), 4)])
def test_a_number_of_masks_the_estimator_can_use_is_accepted(estimator, masks) -> None:
    check_estimator("name", estimator, masks)


def stopped(space, held_back: dict[int, float], patience: int, **changes):
    """Runs a search whose policy loses what `held_back` says after so many steps, and in between what it did before."""
    seen: list[torch.Tensor] = []

    def loss(parameters: torch.Tensor) -> float:
        seen.append(parameters)
        return held_back[5 * (len(seen) - 1)]

    learned, trace = run(space, stopping=EarlyStopping(loss, patience), **changes)
    return learned.keep_prob, trace, seen


def test_a_search_stops_once_it_no_longer_loses_less_on_text_held_back_and_takes_what_lost_least(space) -> None:
    learned, trace, seen = stopped(space, {0: 3.0, 5: 2.0, 10: 2.5, 15: 2.0}, patience=2, steps=40)
    assert len(trace.steps) == 15
    assert torch.equal(learned, seen[1])
    assert (trace.held_back, [record.held_back for record in trace.steps if record.held_back]) == (3.0, [2.0, 2.5, 2.0])


def test_a_search_that_gains_nothing_on_text_held_back_gives_its_start(space) -> None:
    learned, trace, seen = stopped(space, {0: 3.0, 5: 3.1}, patience=1, steps=40)
    assert len(trace.steps) == 5
    assert torch.equal(learned, seen[0])


def test_the_last_look_is_at_the_end(space) -> None:
    learned, trace, seen = stopped(space, {0: 3.0, 5: 2.5, 10: 2.0}, patience=3, steps=8)
    assert [record.step for record in trace.steps if record.held_back] == [5, 8]
    assert torch.equal(learned, seen[2])


def test_a_search_that_looks_steps_as_one_that_does_not(space) -> None:
    _, plain = run(space, steps=8)
    _, looked, _ = stopped(space, {0: 3.0, 5: 2.5, 10: 2.0}, patience=3, steps=8)
    assert [record.losses for record in looked.steps] == [record.losses for record in plain.steps]
