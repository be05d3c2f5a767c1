"""Query head: a unit is one query head of every KV head of a layer, so that all KV heads keep the same number.

Unit r has the r-th query head of each KV head, by position, because attention needs the same number of query heads for
every KV head. Keys and values stay. In a layer with a single KV head (multi-query attention) a unit is one query head.
A layer in which each KV head has one query head has no such units: use `head` there.
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
