"""The wider family of estimators: unbiased where they say so, by enumeration; otherwise what their formula promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch

from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.search.fixed_size import ExactSize
from polyprune_plugins.estimators.antithetic import Antithetic
from polyprune_plugins.estimators.arm import ARM
from polyprune_plugins.estimators.arms import ARMS
from polyprune_plugins.estimators.complement import Complement
from polyprune_plugins.estimators.conditional_bernoulli import ConditionalBernoulli
from polyprune_plugins.estimators.control_variate import ControlVariate
from polyprune_plugins.estimators.hard_concrete import HardConcrete
from polyprune_plugins.estimators.residual import Residual
from polyprune_plugins.estimators.rloo import RLOO
from polyprune_plugins.estimators.straight_through import StraightThrough

S = torch.tensor([0.12, 0.5, 0.35, 0.97], dtype=torch.float64)
MASKS = torch.tensor(list(product([False, True], repeat=len(S))))


def loss(masks: torch.Tensor) -> torch.Tensor:
    """Returns an arbitrary loss of masks or gates (K, 4): no two units alike, of every order, far from zero."""
    m = masks.double()
    linear = m @ torch.tensor([1.3, -0.7, 0.4, 2.1], dtype=torch.float64)
    return 100 + torch.sin(3 * linear) + linear.square() - 2 * m[:, 0] * m[:, 1] * m[:, 2]


def probability(masks: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.where(masks, s, 1 - s).prod(dim=1)


def exact_gradient(s: torch.Tensor, masks: torch.Tensor = MASKS) -> torch.Tensor:
    """Returns d/ds of the mean loss of `masks`, each as likely as its own probability among them."""
    leaf = s.clone().requires_grad_(True)
    p = probability(masks, leaf)
    return torch.autograd.grad(p / p.sum() @ loss(masks), leaf)[0]


def mean_over_independent_draws(estimator, s: torch.Tensor, masks: torch.Tensor, state=None, reference=None):
    """Returns the exact mean of an estimator over every two masks of `masks`."""
    p = probability(masks, s)
    p = p / p.sum()
    total = torch.zeros_like(s)
    for i, j in product(range(len(masks)), repeat=2):
        two = masks[[i, j]]
        batch = MaskBatch(two, reference_loss=reference)
        total += p[i] * p[j] * estimator.gradient(Policy(s), batch, loss(two), state)[0]
    return total


def test_arm_is_unbiased_and_antithetic_pairs_are_its_mean_given_the_masks() -> None:
    # Given its interval of u, a unit's masks are fixed and u is uniform there: its mean is all that ARM needs of it.
    per_unit = []
    for s in S.tolist():
        ends = sorted([0.0, min(s, 1 - s), max(s, 1 - s), 1.0])
        per_unit.append([(b - a, (a + b) / 2) for a, b in pairwise(ends) if b > a])
    total = torch.zeros_like(S)
    for cells in product(*per_unit):
        noise = torch.tensor([u for _, u in cells], dtype=torch.float64)
        masks = torch.stack([noise < S, 1 - noise < S])
        batch = MaskBatch(masks, torch.stack([noise, 1 - noise]))
        weight = torch.tensor([w for w, _ in cells], dtype=torch.float64).prod()
        total += weight * ARM().gradient(Policy(S), batch, loss(masks), None)[0]
    torch.testing.assert_close(total, exact_gradient(S), rtol=0, atol=1e-9)


def test_arms_with_two_masks_is_the_antithetic_pair() -> None:
    batch = ARMS().sample(Policy(S), 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.noise.sum(dim=0), torch.ones(len(S)))
    found = ARMS().gradient(Policy(S), batch, loss(batch.masks), None)[0]
    torch.testing.assert_close(found, Antithetic().gradient(Policy(S), batch, loss(batch.masks), None)[0])


@pytest.mark.parametrize("num_masks", [3, 4])
def test_arms_is_unbiased_and_varies_less_than_leave_one_out(num_masks: int) -> None:
    rng, found, independent = torch.Generator().manual_seed(1), [], []
    for _ in range(3000):
        batch = ARMS().sample(Policy(S), num_masks, rng)
        found.append(ARMS().gradient(Policy(S), batch, loss(batch.masks), None)[0])
        batch = RLOO().sample(Policy(S), num_masks, rng)
        independent.append(RLOO().gradient(Policy(S), batch, loss(batch.masks), None)[0])
    drawn = torch.stack(found)
    z = (drawn.mean(0) - exact_gradient(S)) / (drawn.std(0) / len(drawn) ** 0.5)
    assert z.abs().max() < 5
    assert drawn.var(0).sum() < torch.stack(independent).var(0).sum()


@pytest.mark.parametrize("state", [None, {"residual": 3.0}])
def test_residuals_are_unbiased_whatever_the_reference_loses(state) -> None:
    found = mean_over_independent_draws(Residual(), S, MASKS, state, reference=90.0)
    torch.testing.assert_close(found, exact_gradient(S), rtol=0, atol=1e-9)


def test_residuals_do_not_see_what_a_batch_adds_to_every_loss() -> None:
    masks = MASKS[[3, 9, 14]]
    for state in (None, {"residual": 1.0}):
        (easy, past), (hard, same) = (
            Residual().gradient(Policy(S), MaskBatch(masks, reference_loss=90.0 + shift), loss(masks) + shift, state)
            for shift in (0.0, 7.0)
        )
        torch.testing.assert_close(easy, hard, rtol=0, atol=1e-9)
        assert past["residual"] == pytest.approx(same["residual"])


@pytest.mark.parametrize(("reference", "expected"), [("dense", [1, 1, 1, 1]), ("mode", [0, 0, 0, 1])])
def test_the_reference_is_the_dense_model_or_the_likelier_units(reference, expected) -> None:
    batch = Residual(reference=reference).sample(Policy(S), 2, torch.Generator().manual_seed(0))
    assert batch.reference.tolist() == [bool(value) for value in expected]


def grouped(s: torch.Tensor) -> Policy:
    return Policy(s, group=torch.tensor([0, 0, 1, 1]))


def test_a_control_variate_is_unbiased_given_any_past() -> None:
    estimator, rng = ControlVariate(buckets=2), torch.Generator().manual_seed(2)
    state = None
    for _ in range(5):
        batch = estimator.sample(grouped(S), 4, rng)
        _, state = estimator.gradient(grouped(S), batch, loss(batch.masks), state)
        found = mean_over_independent_draws(estimator, S, MASKS, state)
        torch.testing.assert_close(found, exact_gradient(S), rtol=0, atol=1e-9)


def test_a_control_variate_of_a_linear_loss_leaves_no_variance_once_fitted() -> None:
    s = torch.full((4,), 0.5, dtype=torch.float64)
    worth = torch.tensor([1.0, 1.0, -2.0, -2.0], dtype=torch.float64)
    estimator, rng, state = ControlVariate(buckets=1, ridge=1e-6, memory=1.0), torch.Generator().manual_seed(3), None
    for _ in range(30):
        batch = estimator.sample(grouped(s), 4, rng)
        gradient, state = estimator.gradient(grouped(s), batch, batch.masks.double() @ worth, state)
    torch.testing.assert_close(gradient, worth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("units", [1, 2, 4, 5, 6])
def test_exact_size_draws_and_inclusion_are_those_of_the_enumeration(units: int) -> None:
    s = torch.linspace(0.1, 0.9, units, dtype=torch.float64)
    masks = torch.tensor(list(product([False, True], repeat=units)))
    for size in range(units + 1):
        law = ExactSize(s, size)
        right = masks[masks.sum(dim=1) == size]
        p = probability(right, s)
        p = p / p.sum()
        torch.testing.assert_close(law.inclusion(), p @ right.double(), rtol=0, atol=1e-12)
        drawn = law.sample(4000, torch.Generator().manual_seed(size))
        assert bool((drawn.sum(dim=1) == size).all())
        share = (drawn[:, None] == right).all(dim=2).double().mean(dim=0)
        assert ((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-12).all()


def test_exact_size_holds_for_as_many_units_as_a_model_has() -> None:
    s = torch.rand(40_001, generator=torch.Generator().manual_seed(0)).clamp(1e-3, 1 - 1e-3)
    law = ExactSize(s, round(float(s.sum())))
    assert law.sample(3, torch.Generator().manual_seed(1)).sum(dim=1).tolist() == [law.size] * 3
    assert float(law.inclusion().sum()) == pytest.approx(law.size, rel=1e-6)
    torch.testing.assert_close(law.inclusion(), s.double(), rtol=0, atol=1e-3)


def test_conditional_bernoulli_is_unbiased_for_masks_of_its_size() -> None:
    size = round(float(S.sum()))
    right = MASKS[MASKS.sum(dim=1) == size]
    found = mean_over_independent_draws(ConditionalBernoulli(), S, right)
    torch.testing.assert_close(found, exact_gradient(S, right), rtol=0, atol=1e-9)


def test_conditional_bernoulli_keeps_the_size_of_every_pool() -> None:
    policy = Policy(torch.full((30,), 0.5), pool=torch.arange(30) // 10)
    masks = ConditionalBernoulli().sample(policy, 6, torch.Generator().manual_seed(0)).masks
    assert (masks.view(6, 3, 10).sum(dim=2) == 5).all()


def test_complementary_masks_split_the_unsure_units_and_keep_all_others() -> None:
    policy = Policy(torch.tensor([0.9, 0.2, 0.9, 0.5, 0.9, 0.9]))  # the rate 1.7 / 6 makes three units unsure
    masks = Complement().sample(policy, 8, torch.Generator().manual_seed(0)).masks
    unsure = masks[0::2] ^ masks[1::2]
    assert (unsure == unsure[0]).all()
    assert unsure[0].sum() == 3
    assert unsure[0, [1, 3]].all()
    assert (masks[0::2] | masks[1::2]).all()


def test_complementary_masks_give_the_slope_of_a_linear_loss_on_average() -> None:
    worth = torch.tensor([1.0, -2.0, 0.5, 3.0])
    policy = Policy(torch.full((4,), 0.5))
    batch = Complement().sample(policy, 40_000, torch.Generator().manual_seed(0))
    found, _ = Complement().gradient(policy, batch, 9 + batch.masks.float() @ worth, None)
    torch.testing.assert_close(found, worth, rtol=0, atol=0.15)


def test_straight_through_is_the_mean_slope_at_hard_masks() -> None:
    batch = StraightThrough().sample(Policy(S), 3, torch.Generator().manual_seed(0))
    assert torch.equal(batch.gates, batch.masks.float())
    slopes = torch.arange(12.0).view(3, 4)
    found, _ = StraightThrough().gradient(Policy(S), replace(batch, gate_gradients=slopes), torch.zeros(3), None)
    assert torch.equal(found, slopes.mean(dim=0))


def test_hard_concrete_keeps_units_with_their_probability_and_follows_its_own_relaxation() -> None:
    estimator, rng = HardConcrete(), torch.Generator().manual_seed(0)
    batch = estimator.sample(Policy(S), 40_000, rng)
    assert ((batch.masks.double().mean(0) - S).abs() < 5 * (S * (1 - S) / 40_000).sqrt()).all()
    assert ((batch.gates > 0) & (batch.gates < 1)).any()
    assert (batch.gates == 1).any()
    step = 1e-6
    for unit in range(len(S)):  # against a finite difference of the gates at the same noise
        noise = batch.noise[:50].double()
        moved = [
            estimator._stretched(Policy(S + sign * step * torch.eye(4)[unit]), noise).clamp(0, 1) for sign in (1, -1)
        ]
        expected = ((loss(moved[0]) - loss(moved[1])) / (2 * step)).mean()
        leaf = estimator._stretched(Policy(S), noise).clamp(0, 1).requires_grad_(True)
        slopes = torch.autograd.grad(loss(leaf).sum(), leaf)[0]
        given = replace(batch, masks=leaf.detach() > 0, noise=noise, gate_gradients=slopes)
        found = estimator.gradient(Policy(S), given, loss(leaf).detach(), None)[0][unit]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
