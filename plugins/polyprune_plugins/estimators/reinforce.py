"""REINFORCE with a moving average of past losses as baseline (arXiv 2406.10576, eq. 5, with the paper's baseline).

    g = 1/K sum_k (L_k - delta) (m_k - s) / (s (1 - s)),   then   delta <- (1 - 1/T) delta + (1/T) mean(L).

L_k is the loss of mask m_k of K masks, s the keep probabilities, delta the baseline. The baseline of a step does not
depend on the masks of that step, so the estimate is unbiased. At the first step there is no average yet: each loss is
compared with the losses of the other masks of that step. If the step has one mask only, its gradient is 0.
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
    """Estimates the gradient with REINFORCE and a moving average as baseline.

    Options:
        window: T, the number of steps over which the moving average goes.
    """

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
