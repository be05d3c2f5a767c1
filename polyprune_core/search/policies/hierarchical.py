"""Logits with shared parts: logit = offset of the unit's group + scale of its kind x metric + the unit's own part.

A loss says little about one unit of thousands, but much about the few numbers that all of them share: those learn at
once, and each unit's own part late.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyprune_core.pruning.budget import EPS, pool_labels, shift_logits
from polyprune_core.pruning.types import Policy
from polyprune_core.search.policies.family import Start


class Hierarchical:
    """Parameters: an offset for each of G groups, a scale for each of the kinds, a part of its own for each unit."""

    def __init__(self, start: Start) -> None:
        self.given, self.space = start, start.space
        self.pool = pool_labels(start.space, start.budget.scope)
        self.metric = start.keep_prob().logit()
        self.sizes = (len(self.space.groups), len(self.space.kinds), len(self.space))

    def start(self) -> Tensor:
        groups, kinds, units = (torch.zeros(size) for size in self.sizes)
        return self.project(torch.cat([groups, kinds + 1, units]), self.given.budget.sparsity)

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(torch.sigmoid(self.ranking(parameters)).clamp(EPS, 1 - EPS), self.space.group, self.pool)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        own = gradient * policy.keep_prob * (1 - policy.keep_prob)
        return torch.cat([self._by(self.space.group, own, 0), self._by(self.space.kind, own * self.metric, 1), own])

    def fisher(self, policy: Policy) -> Tensor:
        own = policy.keep_prob * (1 - policy.keep_prob)
        scale = own * self.metric.square()
        return torch.cat([self._by(self.space.group, own, 0), self._by(self.space.kind, scale, 1), own])

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        shift = shift_logits(self.ranking(parameters), self.space, sparsity, self.given.budget.scope)
        shared = self._by(self.space.group, shift, 0) / torch.bincount(self.space.group)
        groups, rest = parameters[: self.sizes[0]], parameters[self.sizes[0] :]
        return torch.cat([groups - shared, rest])

    def ranking(self, parameters: Tensor) -> Tensor:
        offset, scale, own = parameters.split(self.sizes)
        logits: Tensor = offset[self.space.group] + scale[self.space.kind] * self.metric + own
        return logits

    def _by(self, labels: Tensor, values: Tensor, part: int) -> Tensor:
        return torch.zeros(self.sizes[part], dtype=values.dtype).index_add_(0, labels, values)
