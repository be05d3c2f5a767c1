"""Query head: one query head of every KV head, so that each KV head goes on serving equally many.

Unit r is the r-th query head of each KV head of its layer, by position: attention as models have it wants the same
number of queries for every KV head, and which of them a metric ranks r-th in each is not known when units are listed.
Where a layer has one KV head (multi-query attention) a unit is one query head. Keys and values stay. A layer whose KV
heads serve one query head each has no such units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class QueryHead:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        found = []
        for axis in layout.of_kind("query"):
            share = axis.size // layout.axis[axis.of].size
            units = tuple(tuple(range(place, axis.size, share)) for place in range(share))
            if share > 1:
                found.append(UnitGroup("query-head", axis.layer, share, ((axis.name, units),)))
        return found


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("query-head", "one query head of every KV head", QueryHead, reference="GQA, arXiv 2305.13245")
