"""MLP: the whole MLP sublayer of a decoder layer, its norm included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Mlp:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup("mlp", axis.layer, 1, ((axis.name, axis.size),)) for axis in layout.of_kind("mlp")]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("mlp", "one whole MLP sublayer", Mlp, reference="LLM-Drop, arXiv 2406.15786")
