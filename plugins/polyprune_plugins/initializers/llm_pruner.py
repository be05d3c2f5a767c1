"""LLM-Pruner: first- and second-order Taylor estimates of the loss change when a unit's weights go to zero.

arXiv 2305.11627, eqs. 3 to 6. With w a weight, g the gradient of the mean loss over the calibration text and F the
mean squared gradient of its sequences: element1 sum|w g|, vector |sum w g|, element2 sum|w^2 F|,
mix sum|w g - w^2 F / 2|; sums over all matrices coupled in the unit. The only metric here that back-propagates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

TAYLOR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "element1": lambda w, g, f: (w * g).abs(),
    "vector": lambda w, g, f: w * g,
    "element2": lambda w, g, f: (w * w * f).abs(),
    "mix": lambda w, g, f: (w * g - 0.5 * w * w * f).abs(),
}


@dataclass(frozen=True)
class LLMPruner:
    """`taylor`: element1, vector, element2 or mix."""

    taylor: Literal["element1", "vector", "element2", "mix"] = "element1"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        gradient, square = calibration.gradients(squares=self.taylor in ("element2", "mix"))

        def importance(name: str) -> Tensor:
            weight = model.get_parameter(name).detach().float()
            return TAYLOR[self.taylor](weight, gradient[name], square.get(name, gradient[name]))

        return space.sum_weights(importance).abs()


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "llm-pruner",
        "Taylor estimate of the loss change (needs gradients)",
        LLMPruner,
        needs=frozenset({"calibration", "gradients"}),
        reference="arXiv 2305.11627, eqs. 3 to 6",
    )
