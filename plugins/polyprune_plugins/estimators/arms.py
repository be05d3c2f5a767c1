"""ARMS: the K masks of a step are drawn so that they differ more than independent masks do (Dirichlet copula).

For each unit, d is drawn from Dirichlet(1, ..., 1) over the K masks, so that u_k = (1 - d_k)^(K - 1) is uniform. Mask k
keeps a unit with keep probability s if u_k < s, for s < 1/2, or else if 1 - u_k < s. With p = min(s, 1 - s), two masks
both fall into the tail of probability p with probability F = max(0, 2 p^(1 / (K - 1)) - 1)^(K - 1). The estimate
compares each loss with the mean loss of the other masks. It is unbiased once it is scaled by s (1 - s) / (p - F)
(Dimitriev and Zhou 2021, arXiv 2105.14141). For K = 2 it is the antithetic pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class ARMS:
    min_masks = 2
    mask_multiple = 1
    unbiased = True
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        import torch

        s = policy.keep_prob
        share = -torch.rand((num_masks, len(s)), generator=rng).clamp(min=1e-38).log()
        noise = (1 - share / share.sum(dim=0)) ** (num_masks - 1)
        noise = torch.where(s < 0.5, noise, 1 - noise)
        return MaskBatch(noise < s, noise)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        s = policy.keep_prob
        others = len(losses) - 1
        tail = s.minimum(1 - s)
        both = (2 * tail ** (1 / others) - 1).clamp(min=0) ** others
        return (losses - losses.mean()) @ (batch.masks.to(s.dtype) - s) / others / (tail - both), None


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider("arms", "masks that repel each other (Dirichlet copula)", ARMS, reference="arXiv 2105.14141")
