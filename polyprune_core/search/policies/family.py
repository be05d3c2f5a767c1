"""What every family of policies answers. U units, P parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Policy, Scores
from polyprune_core.search.policies.initial import from_scores


@dataclass(frozen=True)
class Start:
    """Where a policy starts: the units, a metric's scores, and the budget.

    `probabilities` says how scores become
    keep probabilities (`policy.PROBABILITIES`). A Gaussian policy starts with the same share of every group
    (`start_scale` "uniform") or compares scores across layers (one of `policy.SCALES`); `sigma` is the standard
    deviation of its noise.
    """

    space: MaskSpace
    scores: Scores
    budget: SelectionRule
    probabilities: str = "sigmoid-norm"
    start_scale: str = "zscore"
    sigma: float = 0.2

    def keep_prob(self) -> Tensor:
        """Returns (U,): the keep probabilities that the metric starts."""
        sparsity, scope = self.budget.sparsity, self.budget.scope
        return from_scores(self.scores, self.space, sparsity, scope, self.probabilities).keep_prob


class Family(Protocol):
    """Parameters (P,) float32, the masks they give, and the geometry of a step."""

    def start(self) -> Tensor:
        """Returns the parameters that a metric starts, within the budget."""

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        """Returns the distribution of masks after `progress`, a fraction, of the search."""

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        """Returns (P,): the gradient with respect to `policy.parameters` carried over to the family's own."""

    def fisher(self, policy: Policy) -> Tensor:
        """Returns (P,): the diagonal of the Fisher information of the family's parameters."""

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        """Returns the parameters brought back within the budget."""

    def ranking(self, parameters: Tensor) -> Tensor:
        """Returns (U,): the units in the order in which the final selection keeps them, higher = keep."""
