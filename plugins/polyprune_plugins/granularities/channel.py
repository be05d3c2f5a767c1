"""Channel: one intermediate unit of one MLP (row of the gate and up projections, column of the down projection).

Where a layer is a mixture of experts, a unit is some neighbouring channels, by position, of all of its experts: they
are stored as equally wide, and their kernels work in such blocks. The expert that all tokens see is an MLP of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl

KINDS = {"mlp": "channel", "expert-channel": "expert-channel", "shared-mlp": "shared-channel"}


@dataclass(frozen=True)
class Channel:
    """`block`: neighbouring channels that stay or go together."""

    block: int = 1

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [
            UnitGroup(KINDS[axis.kind], axis.layer, -(-axis.size // block), ((axis.name, block),))
            for axis in layout.of_kind(*KINDS)
            for block in [-(-self.block // axis.multiple) * axis.multiple]
        ]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("channel", "one MLP channel", Channel, reference="arXiv 2406.10576, section 3")
