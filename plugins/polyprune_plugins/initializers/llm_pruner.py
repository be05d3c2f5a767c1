"""LLM-Pruner: Taylor estimates of how much the loss changes if the weights of a unit become zero.

arXiv 2305.11627, eqs. 3 to 6, with absolute values where the released code has them. w is a weight, g the gradient of
the mean loss over the calibration text, and F the mean squared gradient of its windows. Sums go over all weights of the
matrices that a unit owns a part of. This metric back-propagates.
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
    """Scores units by a Taylor estimate.

    Options:
        taylor: the estimate. `element1` is sum |w g|, `element2` is sum |w² F|, and `mix` is sum |w g - w² F / 2|.
            `vector` is sum |sum w g|, where the inner sum goes over one row of a projection into the sublayer or one
            column of the projection out of it, and the outer sum over the rows and columns of the unit.
        queries: which query heads count for a KV head: its `own`, or, as in the released code, head j for KV head j
            `modulo` the number of KV heads.
        coupled: how the matrices of a unit are combined. `sum` adds them up. The others combine them first, for each
            channel and each dimension of a head: `mean`, `max`, `prod` (up to one factor for all units), the `first`
            matrix (query or gate) or the `second` (key or up).
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
