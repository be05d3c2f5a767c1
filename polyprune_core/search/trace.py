"""What a search cost and how it went, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyprune_core.evaluation.losses import Spent
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.types import Policy


@dataclass(frozen=True)
class StepRecord:
    """One search step; losses in nats per token, `expected_sparsity` under the policy that drew the masks.

    `held_back`: where the search looked, the loss of what it would then select on text that it does not learn from.
    """

    step: int
    losses: tuple[float, ...]
    gradient_norm: float
    expected_sparsity: float
    entropy: float
    non_finite: int
    forward_tokens: int
    seconds: float
    held_back: float | None = None

    @property
    def mean_loss(self) -> float:
        """Mean over the step's masks, in nats per token."""
        return sum(self.losses) / len(self.losses)


@dataclass
class Trace:
    """What a search cost and how it went; `held_back` is that of its start."""

    steps: list[StepRecord] = field(default_factory=list)
    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    non_finite: int = 0
    held_back: float | None = None

    def pay(self, spent: Spent) -> None:
        """Takes in what something cost."""
        self.forward_passes += spent.forward_passes
        self.forward_tokens += spent.forward_tokens
        self.backward_passes += spent.backward_passes

    def add(self, spent: Spent, seconds: float, *, step: int, non_finite: int, **seen: Any) -> StepRecord:
        """Takes in a step that cost `spent`; `seconds` is the time of the search so far."""
        self.pay(spent)
        self.non_finite += non_finite
        self.seconds = seconds
        record = StepRecord(
            step=step, non_finite=non_finite, forward_tokens=self.forward_tokens, seconds=seconds, **seen
        )
        self.steps.append(record)
        return record


def entropy(policy: Policy) -> float:
    """Mean entropy of a unit's mask, in bits."""
    s = policy.keep_prob.double()
    return float(-(s * s.log2() + (1 - s) * (1 - s).log2()).mean())


def expected_sparsity(policy: Policy, space: MaskSpace) -> float:
    """Expected fraction of prunable parameters removed."""
    return 1.0 - float(space.cost @ policy.keep_prob.double()) / space.total_cost
