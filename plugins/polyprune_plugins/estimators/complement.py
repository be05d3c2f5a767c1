"""Complementary masks: half of the unsure units are removed, then the other half (Bonsai, arXiv 2402.05406, section 3).

The policy removes a fraction r of U units on average. The 2 r U units with the lowest keep probability are unsure, and
all other units stay. A mask removes a random half of the unsure units, and its partner removes the other half. With e_i
= +1 if the first mask keeps unit i and the second does not, and -1 if it is the other way round, the estimate is the
mean of (L - L') e_i over pairs. It is exactly the slope of an unsure unit if the loss is linear in the mask. For any
other loss, and for the units that always stay, it is biased.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class Complement:
    min_masks = 2
    mask_multiple = 2
    unbiased = False
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        import torch

        s = policy.keep_prob
        unsure = torch.zeros(len(s), dtype=torch.bool)
        unsure[torch.argsort(s, stable=True)[: max(1, round(2 * float((1 - s).sum())))]] = True
        first = torch.rand((num_masks // 2, len(s)), generator=rng) < 0.5
        return MaskBatch(torch.stack([first | ~unsure, ~first | ~unsure], dim=1).flatten(0, 1))

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        first, second = batch.masks[0::2].to(losses.dtype), batch.masks[1::2].to(losses.dtype)
        gap = losses[0::2] - losses[1::2]
        return gap @ (first - second) / len(gap), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "complement",
        "halves of the unsure units against each other (biased)",
        Complement,
        reference="arXiv 2402.05406",
        xfail={"units_are_kept_with_their_probability": "unsure units stay in half of the masks, all others in all"},
    )
