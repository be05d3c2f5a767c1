"""Attention: a unit is the whole attention sublayer of a decoder layer, with its norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Attention:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [
            UnitGroup("attention", axis.layer, 1, ((axis.name, axis.size),)) for axis in layout.of_kind("attention")
        ]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("attention", "one whole attention sublayer", Attention, reference="LLM-Drop, arXiv 2406.15786")
