"""MLP: a unit is the whole MLP sublayer of a layer, with its norm; in a mixture, all experts with the router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Axis, Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Mlp:
    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        axes: dict[int, list[Axis]] = {}
        for axis in layout.of_kind("mlp", "expert", "shared-mlp"):
            axes.setdefault(axis.layer, []).append(axis)
        return [
            UnitGroup("mlp", layer, 1, tuple((axis.name, axis.size) for axis in own)) for layer, own in axes.items()
        ]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("mlp", "one whole MLP sublayer", Mlp, reference="LLM-Drop, arXiv 2406.15786")
