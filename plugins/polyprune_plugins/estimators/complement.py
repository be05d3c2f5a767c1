"""Complementary masks on the unsure units (Bonsai, arXiv 2402.05406, section 3), read as slopes.

The 2 r U units of lowest keep probability are unsure, r the rate at which the policy removes; all others stay. A mask
drops a random half of the unsure ones and its partner the other half. For a loss linear in the mask the mean of
(L - L') e_i over pairs, e_i = +1 where the first keeps unit i and -1 where the second does, is exactly the unit's
slope; for any other loss, and for the units that always stay, it is biased.
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
