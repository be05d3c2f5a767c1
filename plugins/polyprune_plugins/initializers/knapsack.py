"""Knapsack: the order of `obs` within a layer, and across layers what each removal adds to the error per parameter.

The greedy removal of `obs` gives a curve for every layer: the error E(k) of its output once k of its units are gone
and the others are fitted anew. A unit's score is its slope, the error that its removal adds for each parameter that
goes, made monotone along the order (the lower convex hull of the curve) and divided by a size of the layer, `norm`.
Taking the best under any budget then solves the knapsack over those hulls, as the allocations of ZipLM (arXiv
2302.04089, section 3.2) do for their measured errors. Scores say how much each layer gives, so --scale does not
apply. Forward passes alone, on the unpruned model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

# Units on one edge of a hull still go in their order: the last of a layer scores this much more than its slope.
APART = 0.01


@dataclass(frozen=True)
class Knapsack:
    """`ridge` as in obs.

    `norm`: what the errors of a layer are divided by: the mean square of the residual `stream` that leaves it, of its
    `output`, or `none`.
    """

    comparable = True
    ridge: float = 0.1
    norm: Literal["output", "stream", "none"] = "stream"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        from polyprune_core import removals

        stream = stream_sizes(space, calibration) if self.norm == "stream" else {}
        scores = torch.empty(len(space))
        gone = removals(model, space, calibration, self.ridge)
        for where, group, found in zip(space.slices(), space.groups, gone, strict=True):
            size = {"output": found.output, "stream": stream.get(group.layer), "none": 1.0}[self.norm] or 1.0
            apart = 1 + APART * torch.arange(group.count) / group.count
            slopes = convex(found.errors, space.cost[where][found.order]) * apart / size
            scores[where] = scores[where].index_copy(0, found.order, slopes.float())
        return scores


def convex(errors: Tensor, cost: Tensor) -> Tensor:
    """Returns (n,) float64: the slopes of the lower convex hull of the summed errors over the summed cost.

    Pool adjacent violators: neighbours whose errors for a parameter do not rise become one edge.
    """
    import torch

    edges: list[tuple[float, float, int]] = []
    for error, price in zip(errors.tolist(), cost.tolist(), strict=True):
        units = 1
        while edges and edges[-1][0] * price >= error * edges[-1][1]:
            before, its_price, its_units = edges.pop()
            error, price, units = error + before, price + its_price, units + its_units
        edges.append((error, price, units))
    return torch.cat([torch.full((units,), error / price, dtype=torch.float64) for error, price, units in edges])


def stream_sizes(space: MaskSpace, calibration: Calibration) -> dict[int, float]:
    """Returns, by layer, the mean over tokens of the squared length of the hidden state that leaves it."""
    totals = dict.fromkeys(range(space.layout.num_layers), 0.0)

    def watch(layer: int) -> Callable[[Any, Any], None]:
        def add(_inputs: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            totals[layer] += float(state.double().square().sum())

        return add

    calibration.observe({f"{space.layout.layers}.{layer}": watch(layer) for layer in totals})
    return {layer: total / calibration.windows.numel() for layer, total in totals.items()}


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "knapsack",
        "the order of obs, and for each layer the slope of the error that it leaves",
        Knapsack,
        needs=frozenset({"calibration"}),
        reference="the errors of obs; allocation as in ZipLM, arXiv 2302.04089, section 3.2",
    )
