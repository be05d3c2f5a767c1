"""The update of the paper's released code, its three departures from the paper's formula kept.

D1  the score function is divided by sqrt(s (1 - s)), not s (1 - s): half a natural gradient;
D2  the sum over masks is divided by K - 1 although the baseline is no leave-one-out mean;
D3  the moving average takes in the current losses before it is subtracted.
D2 and D3 scale the gradient by K / (K - 1) * (1 - 1 / (T K)) in expectation; D1 changes its direction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ReinforceReleased:
    """`window`: T, steps over which the baseline averages."""

    window: int = 5

    min_masks = 2
    mask_multiple = 1
    unbiased = False
    precondition = "none"
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        s = policy.keep_prob
        mean = float(losses.mean())
        baseline = mean if state is None else state["baseline"]
        baseline += (mean - baseline) / self.window
        score = (batch.masks.to(s.dtype) - s) / ((s + 1e-7) * (1 - s + 1e-7)).sqrt()
        return (losses - baseline) @ score / (len(losses) - 1), {"baseline": baseline}


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "reinforce-released",
        "the paper's released update, its quirks kept (biased)",
        ReinforceReleased,
        reference="arXiv 2406.10576, released code",
    )
