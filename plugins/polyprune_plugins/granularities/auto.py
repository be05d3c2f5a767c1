"""Auto: what is the finest that a model offers and every format of it can hold: heads, channels and experts.

Of attention, KV heads with their query heads; where a layer has few KV heads, fewer than `kv_heads`, the query heads
within them, as removing a KV head would then remove much of the layer at once. Of MLPs, channels; of mixtures, experts
and the channels of the expert that all tokens see. The kinds of the units say what was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl

CHANNELS = {"mlp": "channel", "expert-channel": "expert-channel", "shared-mlp": "shared-channel"}


@dataclass(frozen=True)
class Auto:
    """`kv_heads`: a model whose layers have fewer KV heads than this is cut in query heads."""

    kv_heads: int = 3

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        heads = [UnitGroup.finest("head", axis) for axis in layout.of_kind("attention") if not axis.whole]
        queries = [UnitGroup.finest("query-head", axis) for axis in layout.of_kind("query")]
        queries = [group for group in queries if group.count > 1]
        few = bool(queries) and max((group.count for group in heads), default=0) < self.kv_heads
        experts = layout.of_kind("expert")
        taken = {axis.name for axis in experts}
        channels = [
            UnitGroup.finest(CHANNELS[axis.kind], axis) for axis in layout.of_kind(*CHANNELS) if axis.of not in taken
        ]
        return [*(queries if few else heads), *(UnitGroup.finest("expert", axis) for axis in experts), *channels]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("auto", "heads or query heads, channels, experts: what fits the model", Auto)
