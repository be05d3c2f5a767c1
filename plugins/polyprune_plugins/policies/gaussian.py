"""A Gaussian over offsets that units share: the metric orders the units of a group, the search says how many stay.

Offsets are drawn together, and every mask is the exact hard selection they give. So one mask differs from another by
whole widths, not by thousands of independent coins, and a loss says something about every offset. The gradient is that
of the loss smoothed over the offsets (evolution strategies: Salimans et al. 2017, arXiv 1703.03864).

From coarse to fine: kinds that share a budget are weighed against each other first, then their groups. A kind's offset
moves all of its groups, so beside its noise that of one group could not be heard.
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
    """Masks `mask_of(mean + sigma e)`, e standard normal (P,); `keep_prob` is about each unit's share of them.

    `sigma` (P,) is 0 where an offset stands still.
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
    """`sigma`: standard deviation of the noise, in standard deviations of a group.

    `start`: where the offsets start; `uniform`: every group keeps the same share; `raw`, `zscore` or `per-parameter`:
    as many units as the metric's own selection under that scale.
    """

    sigma: float = 0.2
    start: Literal["uniform", "raw", "zscore", "per-parameter"] = "zscore"
    independent_units = False
    optimizer, learning_rate, scope = "adam", 0.15, "global"

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"gaussian: option sigma={self.sigma:g} is no deviation; give a number above 0.")

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return BoundGaussian(self, given)


class BoundGaussian:
    """Parameters are the means of the offsets: one a kind, then one a group.

    Within a group units stand at the normal quantiles of their metric's ranks, so that an offset is in standard
    deviations of its group. Units alone in their group start at their rank in their kind.
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
