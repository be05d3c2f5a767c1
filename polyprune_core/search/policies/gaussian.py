"""A Gaussian over offsets that units share: the metric orders the units of a group, the search says how many stay.

Offsets are drawn together, and every mask is the exact hard selection they give. So one mask differs from another by
whole widths, not by thousands of independent coins, and a loss says something about every offset. The gradient is that
of the loss smoothed over the offsets (evolution strategies: Salimans et al. 2017, arXiv 1703.03864).

From coarse to fine: kinds that share a budget are weighed against each other first, then their groups. A kind's offset
moves all of its groups, so beside its noise that of one group could not be heard.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polyprune_core.pruning.budget import EPS
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.search.policies.family import Start

# Kinds are weighed in the first tenth of the steps, with more noise: a layer has few heads, small shifts change none.
KINDS_FIRST = 0.1
KINDS_WIDER = 2.5


@dataclass(frozen=True, kw_only=True)
class GaussianPolicy(Policy):
    """Masks `mask_of(mean + sigma e)`, e standard normal (P,); `keep_prob` is about each unit's share of them.

    `sigma` (P,) is 0 where an offset stands still.
    """

    mean: Tensor
    sigma: Tensor
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
        """Returns (K, P): d log p(offsets) / d mean = e / sigma, 0 where an offset stands still."""
        return torch.where(self.sigma > 0, _noise(batch) / self.sigma, 0.0)

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): half the first's score, as the two of a pair have opposite ones."""
        return self.score_function(batch)[0::2] / 2


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
        self.given, self.space = start, start.space
        how = "raw" if start.scores.comparable or start.start_scale == "uniform" else start.start_scale
        self.scores = scale(start.scores.values, self.space, how)
        self.base = _normal_quantiles(start.scores.values, self.space.group)
        self.of_kind = torch.arange(len(self.space.kinds) + len(self.space.groups)) < len(self.space.kinds)
        self.kinds_trade = start.budget.scope == "global" and len(self.space.kinds) > 1

    def start(self) -> Tensor:
        given, space, budget = self.given, self.space, self.given.budget
        if given.start_scale == "uniform" and not given.scores.comparable:
            budget = replace(budget, scope="layer")
        elif given.start_scale == "zscore" and budget.scope == "global" and not given.scores.comparable:
            # z-scores say nothing of one kind against another: each kind then starts with its own share.
            budget = replace(budget, scope="kind")
        kept = budget.select(self.scores, space).keep
        rank = _normal_quantiles(self.scores, space.kind)
        alone = (torch.bincount(space.group) == 1)[space.group]
        offset = torch.where(alone, rank - _edge(rank, kept, space.kind), -_edge(self.base, kept, space.group))
        parameters = torch.zeros(len(self.of_kind))
        parameters[len(space.kinds) + space.group] = offset
        return parameters

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        given, space, budget = self.given, self.space, replace(self.given.budget, sparsity=sparsity)

        def mask_of(offsets: Tensor) -> Tensor:
            return budget.select(self.ranking(offsets), space).keep

        values = self.ranking(parameters)
        beyond = values - _edge(values, mask_of(parameters), space.kind)
        keep_prob = torch.special.ndtr(beyond / (given.sigma * math.sqrt(2))).clamp(EPS, 1 - EPS)
        weighing_kinds = self.kinds_trade and progress < KINDS_FIRST
        sigma = torch.where(self.of_kind == weighing_kinds, given.sigma * (KINDS_WIDER if weighing_kinds else 1), 0.0)
        return GaussianPolicy(keep_prob, space.group, mean=parameters, sigma=sigma, mask_of=mask_of)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient

    def fisher(self, policy: Policy) -> Tensor:
        assert isinstance(policy, GaussianPolicy)
        return torch.where(policy.sigma > 0, policy.sigma, self.given.sigma) ** -2

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters

    def ranking(self, parameters: Tensor) -> Tensor:
        space = self.space
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


def _edge(values: Tensor, kept: Tensor, labels: Tensor) -> Tensor:
    """Returns (U,): half-way between the lowest value kept and the highest removed among those of the unit's label.

    Where all are kept, or none, it lies half beyond the last.
    """
    none = torch.full((int(labels.max()) + 1,), math.inf)
    lowest = none.scatter_reduce(0, labels, torch.where(kept, values, math.inf), "amin")
    highest = (-none).scatter_reduce(0, labels, torch.where(kept, -math.inf, values), "amax")
    above = torch.where(lowest.isinf(), highest + 1, lowest)
    below = torch.where(highest.isinf(), lowest - 1, highest)
    edges: Tensor = (above + below) / 2
    return edges[labels]
