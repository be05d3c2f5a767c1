"""Granularities with one fault each."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import count

from polyprune_core import ModelLayout, UnitGroup


def channels(layout: ModelLayout, block: int = 1) -> list[UnitGroup]:
    """Returns what a channel granularity without fault would."""
    return [UnitGroup("c", axis.layer, -(-axis.size // block), ((axis.name, block),)) for axis in layout.of_kind("mlp")]


@dataclass(frozen=True)
class Overlapping:
    """Lists the channels of each layer twice."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout) + [UnitGroup("again", g.layer, g.count, g.spans) for g in channels(layout)]


@dataclass(frozen=True)
class TooFew:
    """Leaves the last channel of each layer to no unit."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup("c", g.layer, g.count - 1, g.spans) for g in channels(layout)]


@dataclass(frozen=True)
class NegativeWidth:
    """Gives each unit a negative number of channels."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup("c", g.layer, g.count, ((g.spans[0][0], -1),)) for g in channels(layout)]


@dataclass(frozen=True)
class NoSuchAxis:
    """Names an axis of another model."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup("c", 0, 4, (("layers.0.experts", 1),))]


@dataclass(frozen=True)
class Nothing:
    """Finds no unit."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return []


@dataclass(frozen=True)
class FreeUnits:
    """Has units that own nothing."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [*channels(layout), UnitGroup("free", 0, 3, ())]


CALLS = count()


@dataclass(frozen=True)
class AnotherEachTime:
    """Makes blocks of another size each time it is asked."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout, 1 + next(CALLS) % 5)


@dataclass(frozen=True)
class DrawsBlocks:
    """Draws the size of its blocks from the global generator."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout, random.randint(1, 5))


@dataclass(frozen=True)
class LastLayerFirst:
    """Lists the last layer first."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout)[::-1]


@dataclass(frozen=True)
class WrongLayer:
    """Says of every group that it is of the layer before."""

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return [UnitGroup("c", g.layer - 1, g.count, g.spans) for g in channels(layout)]


FAULTS = {
    Overlapping: "units_divide_the_axes",
    TooFew: "units_divide_the_axes",
    NegativeWidth: "units_divide_the_axes",
    NoSuchAxis: "units_divide_the_axes",
    Nothing: "units_divide_the_axes",
    FreeUnits: "every_unit_costs_something",
    AnotherEachTime: "same_model_gives_the_same_units",
    DrawsBlocks: "groups_use_no_global_randomness",
    LastLayerFirst: "groups_follow_the_layers",
    WrongLayer: "groups_follow_the_layers",
}
