"""Auto: chooses small units that the model has and that every format can hold: heads, channels and experts.

Attention is cut into KV heads with their query heads. In a layer with fewer KV heads than `kv_heads`, it is cut into
query heads, because one KV head would be a large part of that layer. MLPs are cut into channels. Mixtures are cut into
experts, and into channels of the expert that all tokens use. The output of a run names the kinds of units that were
chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl

CHANNELS = {"mlp": "channel", "expert-channel": "expert-channel", "shared-mlp": "shared-channel"}


@dataclass(frozen=True)
class Auto:
    """Lists heads or query heads, channels and experts as units.

    Options:
        kv_heads: attention with fewer KV heads than this is cut into query heads.
    """

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
