"""The update of the released code of arXiv 2406.10576, with its three departures from the formula in the paper.

D1  The score function is divided by sqrt(s (1 - s)), not by s (1 - s). That is half-way to a natural gradient.
D2  The sum over masks is divided by K - 1, although the baseline is not a leave-one-out mean.
D3  The moving average takes in the losses of the step before it is subtracted from them.

D2 and D3 scale the expected gradient by K / (K - 1) * (1 - 1 / (T K)). D1 changes its direction. `reinforce` is the
formula of the paper.
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
    """Estimates the gradient as the released code does.

    Options:
        window: T, the number of steps over which the moving average goes.
    """

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
