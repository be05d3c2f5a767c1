"""Expert: a unit is one expert of a mixture, with its row of the router. The router then chooses among the others.

What the model does with the chosen experts, such as making their weights add up to one, it does among those that stay.
A layer keeps at least as many experts as the router chooses for one token. If the router first chooses groups of
experts, as DeepSeek's does, a unit is one expert of every group, at the same place in each, because groups have one
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from polyprune_core import Granularity, ModelLayout, Provider, UnitGroup, hookimpl


@dataclass(frozen=True)
class Expert:
    if_none = "no layer is a mixture of experts"

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup.finest("expert", axis) for axis in layout.of_kind("expert")]


@hookimpl
def polyprune_granularities() -> Iterator[Provider[Granularity]]:
    yield Provider("expert", "one expert and its row of the router", Expert, reference="REAP, arXiv 2510.13999")
