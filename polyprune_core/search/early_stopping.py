"""When a search stops: once what it would select has stopped losing less on text that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polyprune_core.config.held_back import is_due


@dataclass(frozen=True)
class EarlyStopping:
    """`loss` takes parameters (P,) of the policy and returns, in nats per token, what they lose on text held back.

    A search ends after `patience` looks at it without a lower loss, and gives the parameters of the lowest.
    """

    loss: Callable[[Tensor], float]
    patience: int

    def is_due(self, done: int, steps: int) -> bool:
        """Whether it is time for a look after `done` of the steps."""
        return is_due(done, steps)

    def looked(self, best: Best, parameters: Tensor, step: int) -> tuple[Best, float]:
        """Returns the best parameters so far, those given among them, and the loss of those given."""
        loss = self.loss(parameters)
        if loss < best.loss or best.parameters is None:
            return Best(parameters, loss, step), loss
        return Best(best.parameters, best.loss, best.step, best.looks_since + 1), loss

    def is_over(self, best: Best) -> bool:
        """Whether the search ends."""
        return best.looks_since >= self.patience


@dataclass(frozen=True)
class Best:
    """The parameters (P,) of the lowest loss at a look, the step it came after, and how many looks there were since."""

    parameters: Tensor | None = None
    loss: float = math.inf
    step: int = 0
    looks_since: int = 0

    def tree(self) -> dict[str, Any]:
        """Returns it as numbers and a tensor."""
        return vars(self).copy()
