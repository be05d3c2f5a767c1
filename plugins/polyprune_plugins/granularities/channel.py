"""Channel: one intermediate unit of one MLP (row of the gate and up projections, column of the down projection)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Channel:
    """`block`: neighbouring channels that stay or go together."""

    block: int = 1

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [
            UnitGroup("channel", axis.layer, -(-axis.size // self.block), ((axis.name, self.block),))
            for axis in layout.of_kind("mlp")
        ]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("channel", "one MLP channel", Channel, reference="arXiv 2406.10576, section 3")
