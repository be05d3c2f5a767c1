"""Channel: a unit is one hidden unit of one MLP: a row of the gate and up projections, a column of the down projection.

In a mixture of experts, a unit is a block of neighbouring channels, at the same place in all experts of the layer. The
model stores all experts in one width, and its kernels need blocks. The expert that all tokens use is an MLP of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl

KINDS = {"mlp": "channel", "expert-channel": "expert-channel", "shared-mlp": "shared-channel"}


@dataclass(frozen=True)
class Channel:
    """Lists channels as units.

    Options:
        block: how many neighbouring channels are one unit.
    """

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
