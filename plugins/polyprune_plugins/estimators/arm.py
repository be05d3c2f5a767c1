"""ARM (augment, REINFORCE, merge): pairs of masks from the same random numbers, weighted by these numbers.

Unit i is kept with probability s = keep_prob[i]. A pair of masks shares one uniform draw u for each unit: m = [u < s]
and m' = [1 - u < s]. By the logit of s, the estimate of a pair is (L(m') - L(m)) (u - 1/2) (Yin and Zhou 2019, arXiv
1807.11143, theorem 1, with the two masks in our order). Divided by s (1 - s), it is the derivative by the keep
probability. Antithetic pairs (DisARM) are the mean of this estimate over u, given the two masks, so they vary less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ARM:
    min_masks = 2
    mask_multiple = 2
    unbiased = True
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng, antithetic=True)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        assert batch.noise is not None
        s = policy.keep_prob
        gap = losses[1::2] - losses[0::2]
        return gap @ (batch.noise[0::2].to(s.dtype) - 0.5) / len(gap) / (s * (1 - s)), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider("arm", "augment-REINFORCE-merge over shared uniform draws", ARM, reference="arXiv 1807.11143")
