"""Estimators against the exact gradient of sum_m p(m) L(m), by enumeration of everything they can draw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from polyprune_core.pruning.types import EPS, MaskBatch, Policy
from polyprune_plugins.estimators.antithetic import Antithetic
from polyprune_plugins.estimators.reinforce import Reinforce
from polyprune_plugins.estimators.reinforce_released import ReinforceReleased
from polyprune_plugins.estimators.rloo import RLOO

ALL = [Reinforce(), ReinforceReleased(), RLOO(), Antithetic()]
by_name = pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
KEEP_PROB = torch.tensor([0.12, 0.5, 0.35, 0.97, 0.7], dtype=torch.float64)


def all_masks(units: int) -> torch.Tensor:
    return torch.tensor(list(product([False, True], repeat=units)))


def loss(masks: torch.Tensor) -> torch.Tensor:
    """Returns an arbitrary loss of a mask (K, U): no two units alike, of every order, far from zero."""
    m = masks.double()
    weight = torch.tensor([1.3, -0.7, 0.4, 2.1, -1.1], dtype=torch.float64)[: m.shape[1]]
    linear = m @ weight
    third_order = 2 * m[:, 0] * m[:, 1] * m[:, 2]
    return 100 + torch.sin(3 * linear) + linear.square() - third_order + 1.5 * (m[:, 0] - m[:, 3]).abs()


def probability(masks: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.where(masks, s, 1 - s).prod(dim=1)


def exact_gradient(s: torch.Tensor) -> torch.Tensor:
    """Returns d/ds of sum_m p(m) L(m) by autograd."""
    masks = all_masks(len(s))
    leaf = s.clone().requires_grad_(True)
    (probability(masks, leaf) @ loss(masks)).backward()
    return leaf.grad


def independent_draws(s: torch.Tensor, num_masks: int) -> Iterator[tuple[float, torch.Tensor]]:
    """Yields every (probability, (K, U) masks) of K independent masks."""
    masks = all_masks(len(s))
    p = probability(masks, s)
    for chosen in product(range(len(masks)), repeat=num_masks):
        index = torch.tensor(chosen)
        yield float(p[index].prod()), masks[index]


def antithetic_pairs(s: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """Returns every (probability, (2, U) masks) of one pair ([u < s], [1 - u < s]).

    For one unit, u in [0, 1) falls into three intervals, ended by s and 1 - s: where only the first mask keeps it, only
    the second, and both (s > 1/2) or none (s < 1/2).
    """
    per_unit = []
    for p in s.tolist():
        edge, agree = min(p, 1 - p), p > 0.5
        per_unit.append([(edge, True, False), (edge, False, True), (1 - 2 * edge, agree, agree)])
    pairs = []
    for combination in product(*per_unit):
        weight = torch.tensor([c[0] for c in combination], dtype=torch.float64).prod()
        pairs.append((float(weight), torch.tensor([[c[1] for c in combination], [c[2] for c in combination]])))
    return pairs


def expectation(estimator, s: torch.Tensor, draws, state=None) -> torch.Tensor:
    """Returns the exact mean of an estimator over weighted draws."""
    total, weight = torch.zeros_like(s), 0.0
    for p, masks in draws:
        gradient, _ = estimator.gradient(Policy(s), MaskBatch(masks), loss(masks), state)
        total += p * gradient
        weight += p
    assert weight == pytest.approx(1.0, abs=1e-12)
    return total


# The sums have up to 6,561 terms as large as 100 / 0.03, added in float64: 1e-9 leaves room for their rounding.
def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_the_score_function_is_the_derivative_of_the_log_probability() -> None:
    masks = all_masks(5)
    leaf = KEEP_PROB.clone().requires_grad_(True)
    rows = [torch.autograd.grad(probability(masks, leaf).log()[k], leaf)[0] for k in range(len(masks))]
    torch.testing.assert_close(
        Policy(KEEP_PROB).score_function(MaskBatch(masks)), torch.stack(rows), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("num_masks", [1, 2])
@pytest.mark.parametrize("baseline", [0.0, 93.0])
def test_reinforce_is_unbiased_for_any_baseline_from_the_past(num_masks: int, baseline: float) -> None:
    draws = independent_draws(KEEP_PROB, num_masks)
    assert_same(expectation(Reinforce(), KEEP_PROB, draws, {"baseline": baseline}), exact_gradient(KEEP_PROB))


def test_reinforce_is_unbiased_at_its_first_step_too() -> None:
    assert_same(expectation(Reinforce(), KEEP_PROB, independent_draws(KEEP_PROB, 2)), exact_gradient(KEEP_PROB))


def test_rloo_is_unbiased_with_two_masks() -> None:
    assert_same(expectation(RLOO(), KEEP_PROB, independent_draws(KEEP_PROB, 2)), exact_gradient(KEEP_PROB))


def test_rloo_is_unbiased_with_three_masks() -> None:
    s = KEEP_PROB[:4]
    assert_same(expectation(RLOO(), s, independent_draws(s, 3)), exact_gradient(s))


def test_antithetic_is_unbiased_with_one_pair() -> None:
    assert_same(expectation(Antithetic(), KEEP_PROB, antithetic_pairs(KEEP_PROB)), exact_gradient(KEEP_PROB))


def test_antithetic_is_unbiased_with_two_pairs() -> None:
    s = KEEP_PROB[:4]
    pairs = antithetic_pairs(s)
    draws = ((p * q, torch.cat([first, second])) for (p, first), (q, second) in product(pairs, repeat=2))
    assert_same(expectation(Antithetic(), s, draws), exact_gradient(s))


@pytest.mark.parametrize("window", [1, 5, 10])
@pytest.mark.parametrize("baseline", [0.0, 104.0])
def test_the_released_update_is_the_half_natural_gradient_times_its_two_scale_errors(window, baseline) -> None:
    s, num_masks = KEEP_PROB, 2
    found = expectation(ReinforceReleased(window), s, independent_draws(s, num_masks), {"baseline": baseline})
    factor = num_masks / (num_masks - 1) * (1 - 1 / (window * num_masks))
    # s (1 - s) from the score function over the square root that the released code divides by, its 1e-7 included.
    half_natural = s * (1 - s) / ((s + 1e-7) * (1 - s + 1e-7)).sqrt()
    assert_same(found, factor * half_natural * exact_gradient(s))


def test_the_scale_errors_of_the_released_update_are_1_8_at_the_papers_settings() -> None:
    found = expectation(ReinforceReleased(5), KEEP_PROB, independent_draws(KEEP_PROB, 2), {"baseline": 99.0})
    half_natural = (KEEP_PROB * (1 - KEEP_PROB)).sqrt() * exact_gradient(KEEP_PROB)
    torch.testing.assert_close(found / half_natural, torch.full_like(found, 1.8), rtol=1e-5, atol=0)


def test_the_released_update_with_three_masks_follows_the_same_rule() -> None:
    s = KEEP_PROB[:4]
    found = expectation(ReinforceReleased(5), s, independent_draws(s, 3), {"baseline": 99.0})
    half_natural = s * (1 - s) / ((s + 1e-7) * (1 - s + 1e-7)).sqrt()
    assert_same(found, 3 / 2 * (1 - 1 / 15) * half_natural * exact_gradient(s))


def test_the_first_released_step_is_the_leave_one_out_estimate_with_the_square_root_score() -> None:
    for _, masks in independent_draws(KEEP_PROB, 2):
        losses = loss(masks)
        released, state = ReinforceReleased().gradient(Policy(KEEP_PROB), MaskBatch(masks), losses, None)
        root = ((KEEP_PROB + 1e-7) * (1 - KEEP_PROB + 1e-7)).sqrt()
        by_hand = (losses[0] - losses[1]) / 2 * (masks[0].double() - masks[1].double()) / root
        torch.testing.assert_close(released, by_hand, rtol=1e-10, atol=1e-10)
        assert state == {"baseline": pytest.approx(float(losses.mean()), rel=1e-15)}


def test_the_first_reinforce_step_is_rloo() -> None:
    for _, masks in independent_draws(KEEP_PROB[:4], 2):
        batch, losses = MaskBatch(masks), loss(masks)
        policy = Policy(KEEP_PROB[:4])
        first, _ = Reinforce().gradient(policy, batch, losses, None)
        torch.testing.assert_close(first, RLOO().gradient(policy, batch, losses, None)[0], rtol=1e-12, atol=1e-12)


def test_a_lone_mask_only_starts_the_average_of_reinforce() -> None:
    masks = torch.tensor([[True, False, True, True, False]])
    gradient, state = Reinforce().gradient(Policy(KEEP_PROB), MaskBatch(masks), loss(masks), None)
    assert torch.equal(gradient, torch.zeros_like(KEEP_PROB))
    assert state == {"baseline": float(loss(masks))}


def test_rloo_with_two_masks_is_half_the_loss_gap_times_the_mask_gap() -> None:
    masks = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])
    losses = torch.tensor([3.0, 7.0], dtype=torch.float64)
    expected = -2 * torch.tensor([1.0, 0, 0, 1, -1], dtype=torch.float64) / (KEEP_PROB * (1 - KEEP_PROB))
    found, _ = RLOO().gradient(Policy(KEEP_PROB), MaskBatch(masks), losses, None)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_the_baseline_of_reinforce_is_the_average_of_past_losses_only() -> None:
    masks, losses = torch.tensor([[True] * 5, [False] * 5]), torch.tensor([2.0, 4.0], dtype=torch.float64)
    gradient, state = Reinforce(window=4).gradient(Policy(KEEP_PROB), MaskBatch(masks), losses, {"baseline": 7.0})
    assert state == {"baseline": 6.0}  # 3/4 of 7 and 1/4 of 3
    expected = (-5 * (1 - KEEP_PROB) + 3 * KEEP_PROB) / 2 / (KEEP_PROB * (1 - KEEP_PROB))
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_the_released_baseline_takes_in_the_current_losses_first() -> None:
    masks, losses = torch.tensor([[True] * 5, [False] * 5]), torch.tensor([2.0, 4.0], dtype=torch.float64)
    gradient, state = ReinforceReleased(4).gradient(Policy(KEEP_PROB), MaskBatch(masks), losses, {"baseline": 7.0})
    assert state == {"baseline": 6.0}
    root = ((KEEP_PROB + 1e-7) * (1 - KEEP_PROB + 1e-7)).sqrt()
    torch.testing.assert_close(gradient, (-4 * (1 - KEEP_PROB) + 2 * KEEP_PROB) / root, rtol=1e-12, atol=0)


@by_name
def test_sampled_estimates_agree_with_the_exact_gradient_at_four_masks(estimator) -> None:
    s = KEEP_PROB[:4]
    policy, rng, state = Policy(s), torch.Generator().manual_seed(3), {"baseline": 101.0}
    draws = []
    for _ in range(3000):
        batch = estimator.sample(policy, 4, rng)
        draws.append(estimator.gradient(policy, batch, loss(batch.masks), state)[0])
    drawn = torch.stack(draws)
    expected = exact_gradient(s)
    if not estimator.unbiased:
        expected = expected * 4 / 3 * (1 - 1 / 20) * (s * (1 - s)).sqrt()
    z = (drawn.mean(0) - expected) / (drawn.std(0) / len(drawn) ** 0.5)
    assert z.abs().max() < 5


@by_name
def test_each_mask_keeps_a_unit_with_its_keep_probability(estimator) -> None:
    s, count = KEEP_PROB.float(), 20_000
    masks = estimator.sample(Policy(s), count, torch.Generator().manual_seed(5)).masks
    assert masks.shape == (count, 5)
    assert masks.dtype == torch.bool
    for part in (masks[0::2], masks[1::2]):
        z = (part.float().mean(0) - s) / (s * (1 - s) / len(part)).sqrt()
        assert z.abs().max() < 5


def test_the_masks_of_a_pair_share_one_draw() -> None:
    policy = Policy(KEEP_PROB.float())
    batch = Antithetic().sample(policy, 1000, torch.Generator().manual_seed(5))
    first, second = batch.noise[0::2], batch.noise[1::2]
    assert torch.equal(second, 1 - first)
    assert torch.equal(batch.masks, batch.noise < policy.keep_prob)
    # Only one of the two can be below s < 1/2; at least one is below s > 1/2.
    agree = batch.masks[0::2] == batch.masks[1::2]
    value = batch.masks[0::2]
    assert not value[:, KEEP_PROB < 0.5][agree[:, KEEP_PROB < 0.5]].any()
    assert value[:, KEEP_PROB > 0.5][agree[:, KEEP_PROB > 0.5]].all()


@by_name
def test_the_same_seed_draws_the_same_masks_and_another_seed_others(estimator) -> None:
    policy = Policy(torch.full((50,), 0.5))
    first, again, other = (estimator.sample(policy, 4, torch.Generator().manual_seed(n)).masks for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@by_name
def test_drawing_and_estimating_leave_the_policy_and_the_global_generator_alone(estimator) -> None:
    policy, before = Policy(KEEP_PROB.float()), torch.get_rng_state()
    batch = estimator.sample(policy, 4, torch.Generator().manual_seed(1))
    losses = loss(batch.masks).float()
    kept, masks = losses.clone(), batch.masks.clone()
    estimator.gradient(policy, batch, losses, {"baseline": 100.0})
    assert torch.equal(policy.keep_prob, KEEP_PROB.float())
    assert torch.equal(losses, kept)
    assert torch.equal(batch.masks, masks)
    assert torch.equal(torch.get_rng_state(), before)


def run(estimator, steps: int, state, seed: int) -> tuple[list[torch.Tensor], object]:
    gradients = []
    for step in range(steps):
        policy = Policy(KEEP_PROB)
        batch = estimator.sample(policy, 4, torch.Generator().manual_seed(seed + step))
        gradient, state = estimator.gradient(policy, batch, loss(batch.masks), state)
        gradients.append(gradient)
    return gradients, state


@by_name
def test_a_state_written_and_read_back_continues_as_if_unbroken(estimator) -> None:
    unbroken, end = run(estimator, 6, None, 0)
    _, middle = run(estimator, 3, None, 0)
    resumed, last = run(estimator, 3, json.loads(json.dumps(middle)), 3)
    assert all(torch.equal(a, b) for a, b in zip(unbroken[3:], resumed, strict=True))
    assert end == last


@by_name
def test_a_gradient_call_does_not_change_the_state_it_was_given(estimator) -> None:
    state = {"baseline": 42.0}
    run(estimator, 1, state, 0)
    assert state == {"baseline": 42.0}


@pytest.mark.parametrize("estimator", [RLOO(), Antithetic()], ids=["RLOO", "Antithetic"])
def test_a_constant_added_to_every_loss_changes_nothing(estimator) -> None:
    batch = estimator.sample(Policy(KEEP_PROB), 4, torch.Generator().manual_seed(2))
    losses = torch.tensor([2.25, 3.5, 1.0, 2.75], dtype=torch.float64)  # binary fractions: their mean is exact
    plain, _ = estimator.gradient(Policy(KEEP_PROB), batch, losses, None)
    shifted, _ = estimator.gradient(Policy(KEEP_PROB), batch, losses + 1024, None)
    assert torch.equal(plain, shifted)
    assert plain.abs().max() > 0


@pytest.mark.parametrize("estimator", [Reinforce(), ReinforceReleased()], ids=["Reinforce", "ReinforceReleased"])
def test_a_constant_added_to_losses_and_baseline_changes_nothing(estimator) -> None:
    batch = estimator.sample(Policy(KEEP_PROB), 4, torch.Generator().manual_seed(2))
    losses = torch.tensor([2.25, 3.5, 1.0, 2.75], dtype=torch.float64)
    plain, _ = estimator.gradient(Policy(KEEP_PROB), batch, losses, {"baseline": 2.0})
    shifted, _ = estimator.gradient(Policy(KEEP_PROB), batch, losses + 1024, {"baseline": 1026.0})
    # The moving average divides by the window, so its last bits differ at another size.
    torch.testing.assert_close(plain, shifted, rtol=1e-10, atol=1e-10)


@by_name
def test_float32_and_float64_agree(estimator) -> None:
    batch = estimator.sample(Policy(KEEP_PROB.float()), 4, torch.Generator().manual_seed(9))
    losses = loss(batch.masks) - 90
    wide, _ = estimator.gradient(Policy(KEEP_PROB), batch, losses, {"baseline": 10.0})
    narrow, _ = estimator.gradient(Policy(KEEP_PROB.float()), batch, losses.float(), {"baseline": 10.0})
    assert narrow.dtype == torch.float32
    # Four terms of about 10 / s, at seven digits.
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


@by_name
def test_estimates_are_finite_at_the_ends_of_the_policys_range(estimator) -> None:
    policy = Policy(torch.tensor([EPS, 1 - EPS] * 3))
    for masks in (all_masks(6)[[0, 63]], all_masks(6)[[63, 0]], all_masks(6)[[21, 42]]):
        gradient, _ = estimator.gradient(policy, MaskBatch(masks), torch.tensor([12.0, 3.0]), {"baseline": 5.0})
        assert gradient.isfinite().all()


@by_name
def test_equal_masks_with_equal_losses_say_nothing_where_a_step_has_its_own_baseline(estimator) -> None:
    masks = torch.tensor([[True, False, True, False, True]] * 2)
    gradient, _ = estimator.gradient(Policy(KEEP_PROB), MaskBatch(masks), torch.tensor([4.0, 4.0]).double(), None)
    assert torch.equal(gradient, torch.zeros_like(gradient))
