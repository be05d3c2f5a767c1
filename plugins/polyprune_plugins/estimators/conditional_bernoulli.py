"""Conditional Bernoulli: every mask keeps exactly as many units as the budget allows.

In each pool of units that share a budget and have the same cost, exactly k = round(sum s) units stay, s being the keep
probabilities. Given k, p(m) is proportional to prod s^m (1 - s)^(1 - m), and d log p / d s = (m - pi) / (s (1 - s)),
where pi is the probability that a unit is among the k (Chen and Liu 1997, Statistica Sinica 7). Each loss is compared
with the mean loss of the step. The number of units that a mask keeps then adds no noise to the losses. The estimate is
unbiased for the expected loss of masks of that size, but biased for masks of independent units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from polyprune_core import ExactSize


@dataclass(frozen=True)
class ConditionalBernoulli:
    min_masks = 2
    mask_multiple = 1
    unbiased = False
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        import torch

        masks = torch.empty((num_masks, len(policy.keep_prob)), dtype=torch.bool)
        for pool, law in _laws(policy):
            masks[:, pool] = law.sample(num_masks, rng)
        return MaskBatch(masks)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        s = policy.keep_prob
        expected = s.clone()
        for pool, law in _laws(policy):
            expected[pool] = law.inclusion().to(s.dtype)
        score = (batch.masks.to(s.dtype) - expected) / (s * (1 - s))
        return (losses - losses.mean()) @ score / (len(losses) - 1), None


def _laws(policy: Policy) -> Iterator[tuple[Tensor, ExactSize]]:
    import torch

    from polyprune_core import ExactSize

    s = policy.keep_prob
    pools = torch.zeros(len(s), dtype=torch.long) if policy.pool is None else policy.pool
    for label in pools.unique():
        pool = (pools == label).nonzero().flatten()
        yield pool, ExactSize(s[pool], round(float(s[pool].sum())))


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "conditional-bernoulli",
        "masks of exactly the budget's size, compared with each other",
        ConditionalBernoulli,
        reference="Chen and Liu 1997",
        xfail={"units_are_kept_with_their_probability": "given their number, units stay about that often, not exactly"},
    )
