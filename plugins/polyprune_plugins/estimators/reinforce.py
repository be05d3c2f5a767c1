"""REINFORCE with a moving-average baseline of past losses (arXiv 2406.10576, eq. 5 and its baseline).

g = 1/K sum_k (L_k - delta) (m_k - s) / (s (1 - s)),   then   delta <- (1 - 1/T) delta + (1/T) mean(L).
The baseline used in a step knows nothing of that step's masks, so the estimate is unbiased. The first step has no
past: each mask is compared with the others of that step instead; a lone mask only starts the average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Reinforce:
    """`window`: T, steps over which the baseline averages."""

    window: int = 5

    min_masks = 1
    mask_multiple = 1
    unbiased = True
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        score = policy.score_function(batch)
        mean = float(losses.mean())
        if state is None:
            return (losses - mean) @ score / max(len(losses) - 1, 1), {"baseline": mean}
        baseline = state["baseline"]
        gradient = (losses - baseline) @ score / len(losses)
        return gradient, {"baseline": baseline + (mean - baseline) / self.window}


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "reinforce", "moving-average baseline of past losses", Reinforce, reference="arXiv 2406.10576, eq. 5"
    )
