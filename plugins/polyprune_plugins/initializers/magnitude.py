"""Magnitude: sum of |w|^power over every weight that goes with the unit.

LLM-Pruner's L1 / L2 criterion (arXiv 2305.11627): a sum over the coupled matrices, without a root.
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
class Magnitude:
    """`power`: exponent of the absolute weight, 1 or 2 in the literature."""

    power: float = 2.0

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return space.sum_weights(lambda name: model.get_parameter(name).detach().float().abs() ** self.power)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider("magnitude", "size of the removed weights", Magnitude, reference="arXiv 2305.11627, section 3.2")
