"""Hard concrete gates: soft masks stretched beyond 0 and 1 and clipped, their gradient taken by back-propagation.

x = sigmoid((logit u + log a) / beta) (zeta - gamma) + gamma, gate z = clip(x, 0, 1); a unit is kept with probability
P(z > 0) = sigmoid(log a - beta log(-gamma / zeta)) = s (Louizos et al. 2018, arXiv 1712.01312, eq. 10 to 12). Unbiased
for the relaxed loss, biased for that of hard masks, and every mask costs a backward pass too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import GradientEstimator, MaskBatch, Policy, Provider, State, hookimpl

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True)
class HardConcrete:
    """`beta`: temperature; gates are stretched to (`gamma`, `zeta`)."""

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    min_masks = 1
    mask_multiple = 1
    unbiased = False
    precondition = None
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        import torch

        noise = torch.rand((num_masks, len(policy.keep_prob)), generator=rng).clamp(1e-6, 1 - 1e-6)
        gates = self._stretched(policy, noise).clamp(0, 1)
        return MaskBatch(gates > 0, noise, gates=gates)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        assert batch.gate_gradients is not None
        assert batch.noise is not None
        s = policy.keep_prob
        stretched = self._stretched(policy, batch.noise)
        soft = (stretched - self.gamma) / (self.zeta - self.gamma)
        slope = soft * (1 - soft) / self.beta * (self.zeta - self.gamma) / (s * (1 - s))
        inside = (stretched > 0) & (stretched < 1)
        return (batch.gate_gradients * slope * inside).mean(dim=0), None

    def _stretched(self, policy: Policy, noise: Tensor) -> Tensor:
        log_a = policy.keep_prob.logit() + self.beta * math.log(-self.gamma / self.zeta)
        soft: Tensor = ((noise.logit() + log_a) / self.beta).sigmoid()
        return soft * (self.zeta - self.gamma) + self.gamma


@hookimpl
def polyprune_estimators() -> Iterator[Provider[GradientEstimator]]:
    yield Provider(
        "hard-concrete",
        "gradient of soft gates, by back-propagation (biased)",
        HardConcrete,
        needs=frozenset({"gradients"}),
        reference="arXiv 1712.01312",
    )
