"""Auto: what is the finest that a model offers and every format of it can hold: heads, channels and experts.

Of attention, KV heads with their query heads; where a layer has few KV heads, fewer than `kv_heads`, the query heads
within them, as removing a KV head would then remove much of the layer at once. Of MLPs, channels; of mixtures, experts
and the channels of the expert that all tokens see. The kinds of the units say what was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.expert import Expert
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.query_head import QueryHead


@dataclass(frozen=True)
class Auto:
    """`kv_heads`: a model whose layers have fewer KV heads than this is cut in query heads."""

    kv_heads: int = 3

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        heads = Head().groups(layout)
        queries = QueryHead().groups(layout)
        few = bool(queries) and max((group.count for group in heads), default=0) < self.kv_heads
        experts = Expert().groups(layout)
        taken = {name for group in experts for name, _ in group.spans}
        channels = [
            group for group in Channel().groups(layout) if not taken & {layout.axis[name].of for name, _ in group.spans}
        ]
        return [*(queries if few else heads), *experts, *channels]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("auto", "heads or query heads, channels, experts: what fits the model", Auto)
