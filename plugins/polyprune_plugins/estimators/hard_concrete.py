"""Hard concrete gates: masks with values between 0 and 1, whose gradient is taken by back-propagation.

With u uniform, x = sigmoid((logit u + log a) / beta) (zeta - gamma) + gamma, and the gate is z = min(max(x, 0), 1). A
unit is kept with probability P(z > 0) = sigmoid(log a - beta log(-gamma / zeta)) = s, which determines log a (Louizos
et al. 2018, arXiv 1712.01312, eq. 10 to 12). The estimate is unbiased for the loss under gates, but biased for the loss
under hard masks. Every mask also costs a backward pass.
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
    """Estimates the gradient by back-propagation through hard concrete gates.

    Options:
        beta: the temperature; lower values put more gates at 0 or 1.
        gamma: the lower end of the interval that gates are stretched to, below 0.
        zeta: the upper end of that interval, above 1.
    """

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
