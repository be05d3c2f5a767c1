"""Knapsack: ranks units like `obs` within a layer, and compares layers by the error that a removal adds per parameter.

The greedy removal of `obs` gives a curve for every layer: E(k) is the error of the layer's output after k of its units
are removed and the others are refitted. The score of a unit is the slope of this curve: the error that its removal
adds, divided by its number of parameters. The slopes are made monotone along the order (the lower convex hull of the
curve) and divided by a size of the layer, `norm`. Taking the best scores under any budget then solves the knapsack
problem over these hulls, as the allocation of ZipLM does for its measured errors (arXiv 2302.04089, section 3.2). Such
scores are comparable across layers, so --scale does not apply. It takes forward passes of the dense model only.
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
    """Scores units by the slope of the error curve of their layer.

    Options:
        ridge: the ridge of the refit, as in `obs`.
        norm: what the errors of a layer are divided by. `stream` is the mean square of the residual stream after the
            layer, `output` is that of the layer's output about its mean, and `none` is 1.
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
