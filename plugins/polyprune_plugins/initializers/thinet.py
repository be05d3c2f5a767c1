"""ThiNet: greedy removal within a layer, each time of the unit whose removal changes the layer's output least.

arXiv 1707.06342, section 3.2 and algorithm 1, applied to the attention output and MLP down projections of a
transformer, and without the least-squares rescaling of the paper. The error of a removal is measured together with all
earlier removals. So, of two units that do the same, only one counts as superfluous. The score of a unit is the fraction
of its layer's units that are removed before it, so a pool loses the same fraction of every layer, as published. A unit
that is alone in its layer scores the size of its output. It takes forward passes of the dense model only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class ThiNet:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        def products(axis: str) -> Tensor:
            """Returns (in, in): mean inner products over tokens of what the reader's columns add to its output."""
            weight = space.reader_weight(model, axis)
            return calibration.moments(axis).second * (weight.T @ weight)

        return torch.cat(
            [removal_order(pairs) if len(pairs) > 1 else pairs[0] for pairs in space.sum_products(products)]
        )


def removal_order(products: Tensor) -> Tensor:
    """Returns (n,) float32: for each unit the share of them that greedy removal takes before it.

    `products` (n, n) are inner products of the units' outputs; the error of removing units is the sum over all pairs.
    """
    import torch

    added = products.diag().double()
    order = torch.empty(len(products))
    for place in range(len(products)):
        unit = int(added.argmin())
        order[unit] = place / len(products)
        added += 2 * products[unit]
        added[unit] = torch.inf
    return order


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "thinet",
        "greedy removal by the error of a layer's output",
        ThiNet,
        needs=frozenset({"calibration"}),
        reference="ThiNet, arXiv 1707.06342, section 3.2",
    )
