"""Probabilities: each unit has a free keep probability, as in the paper (arXiv 2406.10576, eq. 4).

After each step the probabilities are projected onto those that meet the budget.
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
class Probabilities:
    """Binds a policy of free keep probabilities to the units of a model.

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
        return BoundProbabilities(self.start, given)


@dataclass(frozen=True)
class BoundProbabilities:
    """The parameters are the keep probabilities (U,)."""

    how: str
    given: PolicyStart

    def start(self) -> Tensor:
        return self.given.keep_prob(self.how)

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(parameters, self.given.space.group, self.given.rule.pool_labels(self.given.space))

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient

    def fisher(self, policy: Policy) -> Tensor:
        return 1 / (policy.keep_prob * (1 - policy.keep_prob))

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return self.given.rule.at(sparsity).project(parameters, self.given.space)

    def ranking(self, parameters: Tensor) -> Tensor:
        return parameters


@hookimpl
def polyprune_policies() -> Iterator[Provider[SearchPolicy]]:
    yield Provider("probabilities", "a keep probability for each unit", Probabilities, reference="arXiv 2406.10576")
