"""What a search cost and how it went, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepRecord:
    """One search step; losses in nats per token, `expected_sparsity` under the policy that drew the masks."""

    step: int
    losses: tuple[float, ...]
    gradient_norm: float
    expected_sparsity: float
    entropy: float
    non_finite: int
    forward_tokens: int
    seconds: float

    @property
    def mean_loss(self) -> float:
        """Mean over the step's masks, in nats per token."""
        return sum(self.losses) / len(self.losses)


@dataclass
class Trace:
    """What a search cost and how it went."""

    steps: list[StepRecord] = field(default_factory=list)
    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    non_finite: int = 0
