"""RIA: how much of its row and of its column a weight makes up, times a root of the input's norm.

Zhang et al., "Plug-and-Play", ICLR 2024: (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) |x_j|^power, with W (out, in).
A unit's score is the sum over its columns of the attention output and MLP down projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

TINY = 1e-30  # the sum of a row or column of zeros


@dataclass(frozen=True)
class RIA:
    """`power`: exponent of the input's norm."""

    power: float = 0.5

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        inputs = calibration.input_statistics()

        def column(axis: str, weight: Tensor) -> Tensor:
            size = weight.abs()
            of_row = size / size.sum(dim=1, keepdim=True).clamp(min=TINY)
            of_column = size / size.sum(dim=0, keepdim=True).clamp(min=TINY)
            return (of_row + of_column).sum(dim=0) * inputs[axis].mean_square.sqrt() ** self.power

        return space.sum_columns(model, column)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "ria",
        "share of a weight in its row and column, times input norm",
        RIA,
        needs=frozenset({"calibration"}),
        reference="Zhang et al., ICLR 2024 (Plug-and-Play)",
    )
