"""When a search stops: once what it would select has stopped losing less on text that it does not learn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class EarlyStopping:
    """`loss` takes parameters (P,) of the policy and returns, in nats per token, what they lose on text held back.

    A search ends after `patience` looks at it without a lower loss, and gives the parameters of the lowest.
    """

    loss: Callable[[Tensor], float]
    patience: int

    def looked(self, best: Best, parameters: Tensor) -> tuple[Best, float]:
        """Returns the best parameters so far, those given among them, and the loss of those given."""
        loss = self.loss(parameters)
        if loss < best.loss or best.parameters is None:
            return Best(parameters, loss), loss
        return replace(best, looks_since=best.looks_since + 1), loss

    def is_over(self, best: Best) -> bool:
        """Whether the search ends."""
        return best.looks_since >= self.patience


@dataclass(frozen=True)
class Best:
    """The parameters (P,) of the lowest loss at a look, that loss, and how many looks there were since."""

    parameters: Tensor | None = None
    loss: float = math.inf
    looks_since: int = 0
