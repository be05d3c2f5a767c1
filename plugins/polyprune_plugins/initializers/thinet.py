"""ThiNet: greedy removal within a layer, each time the unit whose absence changes the layer's output least.

arXiv 1707.06342, section 3.2 and algorithm 1, on the attention output and MLP down projections of a transformer and
without its least-squares rescaling. A removed unit's error is measured together with all that went before it, so two
units that say the same are not both taken for superfluous. A score is the share of its layer's units that go before;
every pooling gives each layer the same share, as published. Forward passes alone, on the unpruned model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class ThiNet:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        if any(group.count == 1 for group in space.groups):
            raise ConfigError(
                f"thinet compares the units of a layer, and {space.name or 'this granularity'} has units that are "
                "alone in theirs; use --granularity head, channel or head+channel, or another metric."
            )
        moments = calibration.second_moments()

        def products(axis: str) -> Tensor:
            """Returns (in, in): mean inner products over tokens of what the reader's columns add to its output."""
            weight = model.get_parameter(f"{space.layout.axis[axis].reader}.weight").detach().float()
            return moments[axis] * (weight.T @ weight)

        return torch.cat([removal_order(matrix) / len(matrix) for matrix in space.sum_products(products)])


def removal_order(products: Tensor) -> Tensor:
    """Returns (n,) float32, 0 for the unit that goes first.

    `products` (n, n) are inner products of the units' outputs; the error of removing units is the sum over all pairs.
    """
    import torch

    added = products.diag().double()
    order = torch.empty(len(products))
    for place in range(len(products)):
        unit = int(added.argmin())
        order[unit] = place
        added += 2 * products[:, unit]
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
