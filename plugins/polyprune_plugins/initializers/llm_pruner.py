"""LLM-Pruner: first- and second-order Taylor estimates of the loss change when a unit's weights go to zero.

arXiv 2305.11627, eqs. 3 to 6, with sizes taken where its released code takes them. With w a weight, g the gradient of
the mean loss over the calibration text and F the mean squared gradient of its sequences: element1 sum|w g|,
element2 sum|w^2 F|, mix sum|w g - w^2 F / 2|, over all weights of the matrices coupled in the unit. vector is
sum|sum w g|: the inner sum is over one row of a projection into the sublayer, or one column of the projection out of
it, the outer one over the unit's rows and columns. How the coupled matrices are put together is `coupled`: summed, or
for each channel and each dimension of a head their mean, largest or product, or what the first or second of them says
(query or gate, key or up), before those of a unit are summed. The only metric here that back-propagates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Axis, Calibration, MaskSpace

TAYLOR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "element1": lambda w, g, f: (w * g).abs(),
    "vector": lambda w, g, f: w * g,
    "element2": lambda w, g, f: (w * w * f).abs(),
    "mix": lambda w, g, f: (w * g - 0.5 * w * w * f).abs(),
}

COUPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.mean(dim=0),
    "max": lambda values: values.amax(dim=0),
    "prod": lambda values: values.prod(dim=0),
    "first": lambda values: values[0],
    "second": lambda values: values[1],
}


@dataclass(frozen=True)
class LLMPruner:
    """`taylor`: element1, vector, element2 or mix.

    `coupled`: how the matrices of a unit are put together; a product is given up to one factor for all units.
    `queries`: whether query head j counts for its `own` KV head, or, as released, for j `modulo` the number of those.
    """

    taylor: Literal["element1", "vector", "element2", "mix"] = "element1"
    queries: Literal["own", "modulo"] = "own"
    coupled: Literal["sum", "mean", "max", "prod", "first", "second"] = "sum"

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

        if self.coupled == "sum":
            return space.sum_weights(importance)
        found = {name: together(space.layout.axis[name], importance, COUPLED[self.coupled]) for name in space.axes}
        largest = max(float(values.max()) for values in found.values()) or 1.0
        return space.sum_entries({name: values.sum(dim=1) / largest for name, values in found.items()})


def together(axis: Axis, importance: Callable[[str], Tensor], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns (size, width) float64: what `reduce` makes of (matrices, size, width) values of an axis' entries.

    `width` is the number of rows or columns that an entry has of the matrix in which it has fewest; a matrix with more
    has theirs added up in turn. A bias counts as one more column of its matrix.
    """
    import torch

    width = min(cut.width for cut in axis.cuts)
    found: dict[str, Tensor] = {}
    for cut in axis.cuts:
        slices = sums_of_slices(importance(cut.parameter).double(), cut.dim).flatten()
        values = slices[cut.start : cut.start + axis.size * cut.width].view(axis.size, -1, width).sum(dim=1)
        module = f"{cut.parameter.rpartition('.')[0]} {cut.start}"
        found[module] = found[module] + values if module in found else values
    return reduce(torch.stack(list(found.values()))).cpu()


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
        "Taylor estimate of how the loss changes",
        LLMPruner,
        needs=frozenset({"calibration", "gradients"}),
        reference="arXiv 2305.11627, eqs. 3 to 6; released code",
    )
