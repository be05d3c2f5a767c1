"""A policy whose parameters are not one a unit, small enough that the gradient of an expected loss is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from polyprune_core.pruning.types import MaskBatch, Policy

SIGMA = 0.4


@dataclass(frozen=True, kw_only=True)
class Together(Policy):
    """Units kept where an offset that several share passes each one's threshold: mean + SIGMA e > threshold.

    `mean` (P,) are the parameters; `noise` is e (K, P). Unit i has the offset `shared[i]`.
    """

    mean: Tensor
    threshold: Tensor
    shared: Tensor

    @property
    def parameters(self) -> Tensor:
        """The means of the offsets."""
        return self.mean

    def sample(self, num_masks: int, rng: torch.Generator, *, antithetic: bool = False) -> MaskBatch:
        """Draws masks; antithetic: mask 2j + 1 uses -e of mask 2j."""
        noise = torch.randn((num_masks // 2 if antithetic else num_masks, len(self.mean)), generator=rng)
        if antithetic:
            noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)
        return MaskBatch((self.mean + SIGMA * noise)[:, self.shared] > self.threshold, noise)

    def score_function(self, batch: MaskBatch) -> Tensor:
        """Returns (K, P): e / SIGMA."""
        if batch.noise is None:
            raise ValueError("the masks were not drawn by policy.sample: there is no noise to score")
        return batch.noise / SIGMA

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): half the score of each pair's first mask."""
        return self.score_function(batch)[0::2] / 2


def together() -> Together:
    """Returns a policy of four units, two for each of two offsets."""
    mean, threshold = torch.tensor([0.2, -0.3]), torch.tensor([0.3, -0.2, 0.1, -0.6])
    shared = torch.tensor([0, 0, 1, 1])
    keep_prob = torch.special.ndtr((mean[shared] - threshold) / SIGMA)
    return Together(keep_prob, mean=mean, threshold=threshold, shared=shared)


def exact_gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns (2,) float64: the gradient of the expected loss by the parameters of `together()`.

    `loss` maps masks (K, 4) to (K,).
    """
    policy = together()
    mean = policy.mean.double().requires_grad_(True)
    expected = torch.zeros((), dtype=torch.float64)
    for mask in product([False, True], repeat=len(policy.threshold)):
        chance = torch.ones((), dtype=torch.float64)
        for offset in range(len(mean)):
            own = [(bool(mask[unit]), float(policy.threshold[unit])) for unit in (policy.shared == offset).nonzero()]
            above = max([edge for kept, edge in own if kept], default=-10.0)
            below = min([edge for kept, edge in own if not kept], default=10.0)
            ends = (torch.special.ndtr((edge - mean[offset]) / SIGMA) for edge in (below, above))
            chance = chance * (next(ends) - next(ends)).clamp(min=0)
        expected = expected + chance * float(loss(torch.tensor([mask]))[0])
    return torch.autograd.grad(expected, mean)[0]
