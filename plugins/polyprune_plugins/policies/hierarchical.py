"""Hierarchical: logits of keep probabilities that the units of a layer and of a kind share in part.

logit = offset of the unit's group + scale of its kind * logit that the metric gives + the unit's own part. A loss says
little about one unit of thousands, but much about the few numbers that many units share. So the shared parts are
learned early, and the own part of each unit later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyprune_core import BoundPolicy, Policy, Provider, SearchPolicy, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import PolicyStart


@dataclass(frozen=True)
class Hierarchical:
    """Binds a policy of logits with shared parts to the units of a model.

    Options:
        start: how the metric's scores become keep probabilities. `sigmoid-norm` is the sigmoid of the z-score within
            each layer and kind. `sigmoid-norm-released` is the same as in the released code. `min-max-norm` scales
            scores to [0, 1]. `const` is 0.9 for units that the metric would keep and 0.1 for the others. `uniform`
            ignores the metric. See `PolicyStart.keep_prob`.
    """

    start: Literal["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "const", "uniform"] = "sigmoid-norm"
    independent_units = True
    optimizer, learning_rate, scope = "sgd", 1e-3, "kind"

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return BoundHierarchical(self.start, given)


class BoundHierarchical:
    """The parameters are an offset for each group, a scale for each kind, and a part of its own for each unit."""

    def __init__(self, how: str, given: PolicyStart) -> None:
        self.given, self.space = given, given.space
        self.pool = given.rule.pool_labels(given.space)
        self.metric = given.keep_prob(how).logit()
        self.sizes = (len(self.space.groups), len(self.space.kinds), len(self.space))

    def start(self) -> Tensor:
        import torch

        groups, kinds, units = (torch.zeros(size) for size in self.sizes)
        return self.project(torch.cat([groups, kinds + 1, units]), self.given.rule.sparsity)

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(Policy.bounded(self.ranking(parameters).sigmoid()), self.space.group, self.pool)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        import torch

        own = gradient * policy.keep_prob * (1 - policy.keep_prob)
        return torch.cat([self._by(self.space.group, own, 0), self._by(self.space.kind, own * self.metric, 1), own])

    def fisher(self, policy: Policy) -> Tensor:
        import torch

        own = policy.keep_prob * (1 - policy.keep_prob)
        scale = own * self.metric.square()
        return torch.cat([self._by(self.space.group, own, 0), self._by(self.space.kind, scale, 1), own])

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        import torch

        shift = self.given.rule.at(sparsity).shift_logits(self.ranking(parameters), self.space)
        shared = self._by(self.space.group, shift, 0) / torch.bincount(self.space.group)
        groups, rest = parameters[: self.sizes[0]], parameters[self.sizes[0] :]
        return torch.cat([groups - shared, rest])

    def ranking(self, parameters: Tensor) -> Tensor:
        offset, scale, own = parameters.split(self.sizes)
        logits: Tensor = offset[self.space.group] + scale[self.space.kind] * self.metric + own
        return logits

    def _by(self, labels: Tensor, values: Tensor, part: int) -> Tensor:
        return values.new_zeros(self.sizes[part]).index_add_(0, labels, values)


@hookimpl
def polyprune_policies() -> Iterator[Provider[SearchPolicy]]:
    yield Provider("hierarchical", "logits with parts that a layer's and a kind's units share", Hierarchical)
