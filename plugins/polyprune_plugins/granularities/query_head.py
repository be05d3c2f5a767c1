"""Query head: one query head of every KV head, so that each KV head goes on serving equally many.

Unit r is the r-th query head of each KV head of its layer, by position: attention as models have it wants the same
number of queries for every KV head, and which of them a metric ranks r-th in each is not known when units are listed.
Where a layer has one KV head (multi-query attention) a unit is one query head. Keys and values stay. A layer whose KV
heads serve one query head each has no such units: there a query head is a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class QueryHead:
    if_none = "no KV head serves several query heads, so that a query head is a head (head, and auto, take those)"

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        found = [UnitGroup.finest("query-head", axis) for axis in layout.of_kind("query")]
        return [group for group in found if group.count > 1]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("query-head", "one query head of every KV head", QueryHead, reference="GQA, arXiv 2305.13245")
