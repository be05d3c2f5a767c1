"""REINFORCE on residuals: each loss less that of a reference mask on the same text, less the mean residual so far.

g = 1/K sum_k (L_k - L_ref - delta) score_k, then delta <- (1 - 1/T) delta + (1/T) mean(L - L_ref). What a batch adds to
every loss cancels, without a second mask to compare with (the tracker of loss residuals of MaskPro, arXiv 2506.12876).
The reference costs one forward pass a step. At the first step the residuals are centred on each other's mean; a lone
mask only starts the average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Residual:
    """`window`: T, steps over which residuals average; `reference`: `dense`, or `mode`: the units likelier to stay."""

    window: int = 5
    reference: Literal["dense", "mode"] = "mode"

    min_masks = 1
    mask_multiple = 1
    extra_passes = 1
    unbiased = True
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        edge = 0.5 if self.reference == "mode" else 0.0
        return replace(policy.sample(num_masks, rng), reference=policy.keep_prob > edge)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        assert batch.reference_loss is not None
        score = policy.score_function(batch)
        residual = losses - batch.reference_loss
        mean = float(residual.mean())
        if state is None:
            return (residual - mean) @ score / max(len(losses) - 1, 1), {"residual": mean}
        past = state["residual"]
        return (residual - past) @ score / len(losses), {"residual": past + (mean - past) / self.window}


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "residual", "loss beyond a reference mask's on the same text", Residual, reference="after arXiv 2506.12876"
    )
