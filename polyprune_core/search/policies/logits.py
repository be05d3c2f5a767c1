"""One free logit a unit; the budget is met by lowering all logits of a pool together."""

from __future__ import annotations

import torch
from torch import Tensor

from polyprune_core.pruning.budget import EPS, pool_labels, shift_logits
from polyprune_core.pruning.types import Policy
from polyprune_core.search.policies.family import Start


class Logits:
    """Parameters are logits (U,); keep_prob is their sigmoid."""

    def __init__(self, start: Start) -> None:
        self.given = start
        self.pool = pool_labels(start.space, start.budget.scope)

    def start(self) -> Tensor:
        return self.given.keep_prob().logit()

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(torch.sigmoid(parameters).clamp(EPS, 1 - EPS), self.given.space.group, self.pool)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient * self.fisher(policy)

    def fisher(self, policy: Policy) -> Tensor:
        return policy.keep_prob * (1 - policy.keep_prob)

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters - shift_logits(parameters, self.given.space, sparsity, self.given.budget.scope)

    def ranking(self, parameters: Tensor) -> Tensor:
        return parameters
