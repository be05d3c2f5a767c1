"""Head: a unit is one KV head with all query heads that read it. Without shared KV heads that is one attention head.

Attention with a part that looks at all heads at once, such as OLMo2's with one norm over all heads, has no such units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Head:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup.finest("head", axis) for axis in layout.of_kind("attention") if not axis.whole]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("head", "one KV head with its query heads", Head, reference="arXiv 2406.10576, section 3")
