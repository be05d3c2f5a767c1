"""LLM-Pruner: first- and second-order Taylor estimates of the loss change when a unit's weights go to zero.

arXiv 2305.11627, eqs. 3 to 6, with sizes taken where its released code takes them. With w a weight, g the gradient of
the mean loss over the calibration text and F the mean squared gradient of its sequences: element1 sum|w g|,
element2 sum|w^2 F|, mix sum|w g - w^2 F / 2|, over all weights of the matrices coupled in the unit. vector is
sum|sum w g|: the inner sum is over one row of a projection into the sublayer, or one column of the projection out of
it, the outer one over the unit's rows and columns. The only metric here that back-propagates.
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
    """`taylor`: element1, vector, element2 or mix.

    `queries`: whether query head j counts for its `own` KV head, or, as released, for j `modulo` the number of those.
    """

    taylor: Literal["element1", "vector", "element2", "mix"] = "element1"
    queries: Literal["own", "modulo"] = "own"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        gradient, square = calibration.gradients(squares=self.taylor in ("element2", "mix"))
        cuts = {cut.parameter: (cut, axis) for axis in space.layout.axes for cut in axis.cuts}

        def importance(name: str) -> Tensor:
            weight = model.get_parameter(name).detach().float()
            values = TAYLOR[self.taylor](weight, gradient[name], square.get(name, gradient[name]))
            cut, axis = cuts[name]
            if self.taylor == "vector":
                values = sums_of_slices(values, cut.dim).abs()
            if self.queries == "modulo":
                values = dealt_out(values, cut.dim, axis.size, min(each.width for each in axis.cuts))
            return values

        return space.sum_weights(importance)


def sums_of_slices(values: Tensor, dim: int) -> Tensor:
    """Returns the sums over all dimensions but `dim`, which stay with size 1: of rows for 0, of columns for 1."""
    for other in range(values.dim()):
        if other != dim:
            values = values.sum(dim=other, keepdim=True)
    return values


def dealt_out(values: Tensor, dim: int, heads: int, width: int) -> Tensor:
    """Returns `values` with the blocks of `width` along `dim` in another order: block j goes to entry j modulo `heads`.

    Entries own equal parts of `dim`, one after the other. Where each owns one block, the order stays.
    """
    blocks = values.movedim(dim, 0).unflatten(0, (-1, heads, width))
    dealt: Tensor = blocks.transpose(0, 1).flatten(0, 2).movedim(0, dim)
    return dealt


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "llm-pruner",
        "Taylor estimate of the loss change (needs gradients)",
        LLMPruner,
        needs=frozenset({"calibration", "gradients"}),
        reference="arXiv 2305.11627, eqs. 3 to 6; released code",
    )
