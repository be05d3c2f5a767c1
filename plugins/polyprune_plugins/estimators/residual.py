"""REINFORCE on residuals: from each loss, the loss of a reference mask on the same text is subtracted.

    g = 1/K sum_k (L_k - L_ref - delta) score_k,   then   delta <- (1 - 1/T) delta + (1/T) mean(L - L_ref).

L_k is the loss of mask k, score_k the gradient of its log probability, and delta the moving average of past residuals.
A hard batch of text raises L_k and L_ref alike, so it cancels. This is the loss residual tracker of MaskPro (arXiv
2506.12876). The reference costs one forward pass a step. At the first step each residual is compared with the others of
that step. If the step has one mask only, its gradient is 0.
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
    """Estimates the gradient from losses relative to a reference mask.

    Options:
        window: T, the number of steps over which residuals are averaged.
        reference: the reference mask. `dense` keeps all units; `mode` keeps the units with keep probability above 1/2.
    """

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
