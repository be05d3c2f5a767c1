"""A Gaussian over offsets that units share: the metric orders the units of a group, the search says how many stay.

Offsets are drawn together, and every mask is the exact hard selection they give. So one mask differs from another by
whole widths, not by thousands of independent coins, and a loss says something about every offset. The gradient is that
of the loss smoothed over the offsets (evolution strategies: Salimans et al. 2017, arXiv 1703.03864).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyprune_core.budget import EPS
from polyprune_core.policies.family import Start
from polyprune_core.policy import scale
from polyprune_core.types import MaskBatch, Policy


@dataclass(frozen=True, kw_only=True)
class GaussianPolicy(Policy):
    """Masks `mask_of(mean + sigma e)` with e standard normal (P,); `keep_prob` is about each unit's share of them."""

    mean: Tensor
    sigma: float
    mask_of: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> Tensor:
        return self.mean

    def sample(self, num_masks: int, rng: torch.Generator, *, antithetic: bool = False) -> MaskBatch:
        """Draws masks; antithetic: mask 2j + 1 uses -e of mask 2j. `noise` is e (K, P)."""
        noise = torch.randn((num_masks // 2 if antithetic else num_masks, len(self.mean)), generator=rng)
        if antithetic:
            noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)
        return MaskBatch(torch.stack([self.mask_of(self.mean + self.sigma * e) for e in noise]), noise)

    def score_function(self, batch: MaskBatch) -> Tensor:
        """Returns (K, P): d log p(offsets) / d mean = e / sigma."""
        return _noise(batch) / self.sigma

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): e / (2 sigma), as the two of a pair have opposite scores."""
        return _noise(batch)[0::2] / (2 * self.sigma)


def _noise(batch: MaskBatch) -> Tensor:
    assert batch.noise is not None
    return batch.noise


class Gaussian:
    """Parameters are the means of the offsets: one a kind, then one a group.

    Within a group units stand at the normal quantiles of their metric's ranks, so that an offset is in standard
    deviations of its group. Offsets start where every group keeps the same share (`start_scale` "uniform"), or as many
    units as the metric's own selection. Units alone in their group start at their rank in their kind.
    """

    def __init__(self, start: Start) -> None:
        self.given, space = start, start.space
        how = "raw" if start.across_layers or start.start_scale == "uniform" else start.start_scale
        self.scores = scale(start.scores, space, how)
        self.base = _normal_quantiles(self.scores, space.group)

    def start(self) -> Tensor:
        given, space, budget = self.given, self.given.space, self.given.budget
        if given.start_scale == "uniform" and not given.across_layers:
            budget = replace(budget, scope="layer")
        elif given.start_scale == "zscore" and budget.scope == "global" and not given.across_layers:
            # z-scores say nothing of one kind against another: each kind then starts with its own share.
            budget = replace(budget, scope="kind")
        kept = budget.select(self.scores, space).keep
        place = _normal_quantiles(self.scores, space.kind) + _normal_quantile_of_share(kept, space.kind)
        alone = (torch.bincount(space.group) == 1)[space.group]
        offset = torch.where(alone, place, _normal_quantile_of_share(kept, space.group))
        parameters = torch.zeros(len(space.kinds) + len(space.groups))
        parameters[len(space.kinds) + space.group] = offset
        return parameters

    def policy(self, parameters: Tensor, sparsity: float) -> Policy:
        given = self.given

        def mask_of(offsets: Tensor) -> Tensor:
            return replace(given.budget, sparsity=sparsity).select(self.ranking(offsets), given.space).keep

        values, kept = self.ranking(parameters), mask_of(parameters)
        edges = [
            torch.where(kept & (given.space.kind == kind), values, torch.inf).amin()
            for kind in range(len(given.space.kinds))
        ]
        above = torch.special.ndtr((values - torch.stack(edges)[given.space.kind]) / (given.sigma * math.sqrt(2)))
        return GaussianPolicy(
            above.clamp(EPS, 1 - EPS), given.space.group, mean=parameters, sigma=given.sigma, mask_of=mask_of
        )

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient

    def fisher(self, policy: Policy) -> Tensor:
        return torch.full_like(policy.parameters, self.given.sigma**-2)

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters

    def ranking(self, parameters: Tensor) -> Tensor:
        space = self.given.space
        return self.base + parameters[space.kind] + parameters[len(space.kinds) + space.group]


def _normal_quantiles(values: Tensor, labels: Tensor) -> Tensor:
    """Returns (U,): the standard normal quantile of each value's rank among those of its label."""
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.empty(len(values))
    rank[order] = (torch.arange(len(values)) - (counts.cumsum(0) - counts)[labels[order]]).float()
    quantiles: Tensor = torch.special.ndtri((rank + 0.5) / counts[labels])
    return quantiles


def _normal_quantile_of_share(kept: Tensor, labels: Tensor) -> Tensor:
    """Returns (U,): the standard normal quantile of the share that is kept of the units of each label."""
    counts = torch.bincount(labels)
    share = (torch.bincount(labels, kept.float()) + 0.5) / (counts + 1)
    quantiles: Tensor = torch.special.ndtri(share)[labels]
    return quantiles
