"""RLOO (REINFORCE, leave one out): each loss is compared with the mean loss of the other masks of its step.

    g = 1/(K-1) sum_k (L_k - mean L) (m_k - s) / (s (1 - s))

L_k is the loss of mask m_k of K masks, and s the keep probabilities (Kool et al. 2019, "Buy 4 REINFORCE samples, get a
baseline for free!"). All masks of a step see the same batch of text, so a hard batch cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class RLOO:
    min_masks = 2
    mask_multiple = 1
    unbiased = True
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        # K - 1, not K: each baseline leaves its own mask out. Dividing by K would shrink every step and look fine.
        return (losses - losses.mean()) @ policy.score_function(batch) / (len(losses) - 1), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider("rloo", "leave-one-out baseline within the step", RLOO, reference="Kool et al. 2019, eq. 8")
