"""Layer: a unit is a whole decoder layer, its attention and MLP together.

A layer with a part that cannot be cut, such as a convolution or a Mamba block, always stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Layer:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [
            UnitGroup("layer", index, 1, tuple((axis.name, axis.size) for axis in layout.axes if axis.layer == index))
            for index in range(layout.num_layers)
            if index not in layout.fixed
        ]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("layer", "one whole decoder layer", Layer, reference="arXiv 2406.10576; ShortGPT, arXiv 2403.03853")
