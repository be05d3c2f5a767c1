"""One free logit a unit; the budget is met by lowering all logits of a pool together."""

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
    """`start`: how the metric's scores become probabilities; see `PolicyStart.keep_prob`."""

    start: Literal["sigmoid-norm", "sigmoid-norm-released", "min-max-norm", "const", "uniform"] = "sigmoid-norm"
    independent_units = True
    optimizer, learning_rate, scope = "sgd", 1e-3, "kind"

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return BoundLogits(self.start, given)


@dataclass(frozen=True)
class BoundLogits:
    """Parameters are logits (U,); keep_prob is their sigmoid."""

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
