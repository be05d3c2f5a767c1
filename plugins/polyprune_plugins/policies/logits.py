"""Logits: each unit has a free parameter, the logit of its keep probability.

The budget is met by subtracting a multiple of the units' prices from all logits of a pool.
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
class Logits:
    """Binds a policy of free logits to the units of a model.

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
        return BoundLogits(self.start, given)


@dataclass(frozen=True)
class BoundLogits:
    """The parameters are logits (U,); `keep_prob` is their sigmoid."""

    how: str
    given: PolicyStart

    def start(self) -> Tensor:
        return self.given.keep_prob(self.how).logit()

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        given = self.given
        return Policy(Policy.bounded(parameters.sigmoid()), given.space.group, given.rule.pool_labels(given.space))

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient * self.fisher(policy)

    def fisher(self, policy: Policy) -> Tensor:
        return policy.keep_prob * (1 - policy.keep_prob)

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters - self.given.rule.at(sparsity).shift_logits(parameters, self.given.space)

    def ranking(self, parameters: Tensor) -> Tensor:
        return parameters


@hookimpl
def polyprune_policies() -> Iterator[Provider[SearchPolicy]]:
    yield Provider("logits", "a logit for each unit", Logits)
