"""Antithetic pairs: masks are drawn two at a time from the same random numbers. DisARM and U2G are this estimator.

Unit i is kept with probability s = keep_prob[i]. A pair of masks shares one uniform draw u for each unit: m = [u < s]
and m' = [1 - u < s]. By the logit of s, the estimate of a pair with losses L and L' is (L - L') (m - m') max(s, 1 - s)
/ 2. It is zero for a unit that is equal in both masks (Dong et al. 2020, arXiv 2006.10680, eq. 9; Yin et al. 2020).
Divided by s (1 - s), it is the derivative by the keep probability. The gradient is the mean over pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Antithetic:
    min_masks = 2
    mask_multiple = 2
    unbiased = True
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng, antithetic=True)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gap = losses[0::2] - losses[1::2]
        return gap @ policy.pair_score(batch) / len(gap), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider("antithetic", "antithetic pairs (DisARM / U2G)", Antithetic, reference="arXiv 2006.10680, eq. 9")
