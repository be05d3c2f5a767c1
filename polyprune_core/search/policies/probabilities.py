"""The paper's policy: one free keep probability a unit, projected onto the budget (arXiv 2406.10576, eq. 4)."""

from __future__ import annotations

from torch import Tensor

from polyprune_core.pruning.budget import pool_labels, project
from polyprune_core.pruning.types import Policy
from polyprune_core.search.policies.family import Start


class Probabilities:
    """Parameters are the keep probabilities (U,)."""

    def __init__(self, start: Start) -> None:
        self.given = start
        self.pool = pool_labels(start.space, start.budget.scope)

    def start(self) -> Tensor:
        return self.given.keep_prob()

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(parameters, self.given.space.group, self.pool)

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient

    def fisher(self, policy: Policy) -> Tensor:
        return 1 / (policy.keep_prob * (1 - policy.keep_prob))

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return project(parameters, self.given.space, sparsity, self.given.budget.scope)

    def ranking(self, parameters: Tensor) -> Tensor:
        return parameters
