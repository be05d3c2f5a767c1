"""Straight-through: the gradient by the mask, from back-propagation, is used as the gradient by the keep probability.

The mask is hard in the forward pass, and dL/ds is set to dL/dm (Bengio et al. 2013, arXiv 1308.3432, section 4). The
estimate is biased, and every mask also costs a backward pass. Compare other estimators with it to see whether
back-propagation would do better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class StraightThrough:
    min_masks = 1
    mask_multiple = 1
    unbiased = False
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        batch = policy.sample(num_masks, rng)
        return replace(batch, gates=batch.masks.float())

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        assert batch.gate_gradients is not None
        return batch.gate_gradients.mean(dim=0), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "straight-through",
        "the mask's own gradient, by back-propagation (biased)",
        StraightThrough,
        needs=frozenset({"gradients"}),
        reference="arXiv 1308.3432",
    )
