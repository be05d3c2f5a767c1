"""Gaussian: the metric orders the units of each layer, and the search learns how many units each layer keeps.

The units of one layer and kind are a group. The score of a unit is the normal quantile of its rank in the group, plus
an offset of its group and an offset of its kind. A mask is the exact selection under the budget that these scores give.
The search draws the offsets from a normal distribution and learns their means, with the gradient of evolution
strategies (Salimans et al. 2017, arXiv 1703.03864). Two masks then differ in the widths of whole layers, in place of
thousands of independent units, so each loss says something about every offset.

If different kinds share a budget, the first part of the search moves the offsets of kinds only, and the rest moves
those of groups only. The offset of a kind moves all of its groups, and its noise would hide the effect of a single
group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from polyprune_core import BoundPolicy, ConfigError, MaskBatch, Policy, Provider, SearchPolicy, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from polyprune_core import PolicyStart

# Kinds are weighed in the first tenth of the steps, with more noise: a layer has few heads, small shifts change none.
KINDS_FIRST = 0.1
KINDS_WIDER = 2.5


@dataclass(frozen=True, kw_only=True)
class GaussianPolicy(Policy):
    """Masks `mask_of(mean + sigma e)` with e (P,) standard normal; `keep_prob` is about how often each unit is kept.

    `sigma` (P,) is 0 for an offset that does not move.
    """

    mean: Tensor
    sigma: Tensor
    mask_of: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> Tensor:
        return self.mean

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        """Draws masks; antithetic: mask 2j + 1 uses -e of mask 2j. `noise` is e (K, P)."""
        import torch

        noise = torch.randn((num_masks // 2 if antithetic else num_masks, len(self.mean)), generator=rng)
        if antithetic:
            noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)
        return MaskBatch(torch.stack([self.mask_of(self.mean + self.sigma * e) for e in noise]), noise)

    def score_function(self, batch: MaskBatch) -> Tensor:
        """Returns (K, P): d log p(offsets) / d mean = e / sigma, 0 where an offset stands still."""
        return (_noise(batch) / self.sigma).where(self.sigma > 0, 0.0)

    def pair_score(self, batch: MaskBatch) -> Tensor:
        """Returns (K / 2, P): half the first's score, as the two of a pair have opposite ones."""
        return self.score_function(batch)[0::2] / 2


def _noise(batch: MaskBatch) -> Tensor:
    assert batch.noise is not None
    return batch.noise


@dataclass(frozen=True)
class Gaussian:
    """Binds a Gaussian policy to the units of a model.

    Options:
        sigma: the standard deviation of the noise of offsets, in standard deviations of the scores within a group.
        start: how many units each group keeps at the start. With `uniform`, every group keeps the same fraction. With
            `raw`, `zscore` or `per-parameter`, it keeps as many as the metric's own selection does under that scale.
    """

    sigma: float = 0.2
    start: Literal["uniform", "raw", "zscore", "per-parameter"] = "zscore"
    independent_units = False
    optimizer, learning_rate, scope = "adam", 0.15, "global"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"gaussian: option sigma={self.sigma:g} is no standard deviation; give a number above 0.")

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return BoundGaussian(self, given)


class BoundGaussian:
    """The parameters are the means of the offsets: one for each kind, then one for each group.

    The scores within a group are normal quantiles of ranks, so an offset is in standard deviations of its group. A unit
    that is alone in its group starts at the quantile of its rank within its kind.
    """

    def __init__(self, how: Gaussian, given: PolicyStart) -> None:
        import torch

        self.how, self.given, self.space = how, given, given.space
        self.scores = given.scaled("raw" if how.start == "uniform" else how.start)
        self.base = _normal_quantiles(given.scores.values, self.space.group)
        self.of_kind = torch.arange(len(self.space.kinds) + len(self.space.groups)) < len(self.space.kinds)
        self.kinds_trade = given.rule.scope == "global" and len(self.space.kinds) > 1

    def start(self) -> Tensor:
        import torch

        space, rule, comparable = self.space, self.given.rule, self.given.scores.comparable
        if self.how.start == "uniform" and not comparable:
            rule = replace(rule, scope="layer")
        elif self.how.start == "zscore" and rule.scope == "global" and not comparable:
            # z-scores say nothing of one kind against another: each kind then starts with its own share.
            rule = replace(rule, scope="kind")
        kept = rule.select(self.scores, space).keep
        rank = _normal_quantiles(self.scores, space.kind)
        alone = (torch.bincount(space.group) == 1)[space.group]
        offset = torch.where(alone, rank - _edge(rank, kept, space.kind), -_edge(self.base, kept, space.group))
        parameters = torch.zeros(len(self.of_kind))
        parameters[len(space.kinds) + space.group] = offset
        return parameters

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        import torch

        sigma, space, rule = self.how.sigma, self.space, self.given.rule.at(sparsity)

        def mask_of(offsets: Tensor) -> Tensor:
            return rule.select(self.ranking(offsets), space).keep

        values = self.ranking(parameters)
        beyond = values - _edge(values, mask_of(parameters), space.kind)
        keep_prob = Policy.bounded(torch.special.ndtr(beyond / (sigma * math.sqrt(2))))
        weighing_kinds = self.kinds_trade and progress < KINDS_FIRST
        moving = torch.where(self.of_kind == weighing_kinds, sigma * (KINDS_WIDER if weighing_kinds else 1), 0.0)
        return GaussianPolicy(keep_prob, space.group, mean=parameters, sigma=moving, mask_of=mask_of)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient

    def fisher(self, policy: Policy) -> Tensor:
        assert isinstance(policy, GaussianPolicy)
        return policy.sigma.where(policy.sigma > 0, self.how.sigma) ** -2

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters

    def ranking(self, parameters: Tensor) -> Tensor:
        space = self.space
        return self.base + parameters[space.kind] + parameters[len(space.kinds) + space.group]


def _normal_quantiles(values: Tensor, labels: Tensor) -> Tensor:
    """Returns (U,): the standard normal quantile of each value's rank among those of its label."""
    import torch

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
    import torch

    none = torch.full((int(labels.max()) + 1,), math.inf)
    lowest = none.scatter_reduce(0, labels, torch.where(kept, values, math.inf), "amin")
    highest = (-none).scatter_reduce(0, labels, torch.where(kept, -math.inf, values), "amax")
    above = torch.where(lowest.isinf(), highest + 1, lowest)
    below = torch.where(highest.isinf(), lowest - 1, highest)
    edges: Tensor = (above + below) / 2
    return edges[labels]


@hookimpl
def polyprune_policies() -> Iterator[Provider[SearchPolicy]]:
    summary = "how many units each layer keeps, in the metric's order"
    yield Provider("gaussian", summary, Gaussian, reference="Salimans et al. 2017, arXiv 1703.03864")
