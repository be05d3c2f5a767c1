"""Providers and options with one fault each, around granularities that have none."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broken.granularities import channels
from polyprune_core import ModelLayout, Provider, UnitGroup


@dataclass(frozen=True)
class Channels:
    """Without fault: what the others are made from."""

    block: int = 1

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout, self.block)


@dataclass
class Mutable:
    block: int = 1

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout, self.block)


class NoValue:
    """Cannot be changed, but two of them are never equal."""

    __slots__ = ()

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout)


@dataclass(frozen=True)
class NeedsAnOption(Channels):
    block: int = field()


@dataclass(frozen=True)
class HoldsALock(Channels):
    lock: Any = field(default_factory=threading.Lock, init=False, compare=False)


@dataclass(frozen=True)
class DrawsWhenMade(Channels):
    def __post_init__(self) -> None:
        random.random()


@dataclass(frozen=True)
class OptionIsAPath(Channels):
    folder: Path = Path("somewhere")


@dataclass(frozen=True)
class OptionIsATuple(Channels):
    blocks: tuple[int, ...] = (1, 2)


def swallow(block: int = 1, **rest: Any) -> Channels:
    """Takes any option, misspelt or not."""
    return Channels(block)


def untyped(block=1) -> Channels:
    """Takes its option as the text that was typed."""
    return Channels(block)


class PlainClass:
    """Has an option in a constructor of its own, which core does not read types from."""

    __slots__ = ("_block",)

    def __init__(self, block: int = 1) -> None:
        object.__setattr__(self, "_block", block)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainClass) and self._block == other._block

    def __hash__(self) -> int:
        return hash(self._block)

    def __reduce__(self) -> Any:
        return PlainClass, (self._block,)

    def groups(self, layout: ModelLayout) -> list[UnitGroup]:
        return channels(layout, self._block)


def no_implementation() -> object:
    """Returns something that is no granularity."""
    return object()


FAULTS = {
    Provider("Upper_Case", "a name that cannot be typed", Channels): "provider_can_be_listed",
    Provider("no-summary", "", Channels): "provider_can_be_listed",
    Provider("control-codes", "clears \x1b[2J the screen", Channels): "provider_can_be_listed",
    Provider("two-lines", "one\ntwo", Channels): "provider_can_be_listed",
    Provider(
        "needs-text", "says text where it is calibration", Channels, frozenset({"text"})
    ): "provider_can_be_listed",
    Provider(
        "excuses-the-contract", "excuses what cannot be", Channels, xfail={"units_divide_the_axes": "hard to do"}
    ): "exceptions_are_allowed_and_have_reasons",
    Provider("needs-an-option", "cannot be made by its name alone", NeedsAnOption): "builds_with_its_defaults",
    Provider("no-implementation", "makes something else", no_implementation): "builds_with_its_defaults",
    Provider("option-is-a-path", "an option that is no JSON", OptionIsAPath): "options_can_be_typed_and_stored",
    Provider("option-is-a-tuple", "an option that cannot be typed", OptionIsATuple): "options_can_be_typed_and_stored",
    Provider("untyped-option", "an option without a type", untyped): "options_can_be_typed_and_stored",
    Provider("plain-class", "an option core cannot read", PlainClass): "options_can_be_typed_and_stored",
    Provider("swallows-options", "takes any option", swallow): "unknown_option_is_refused",
    Provider("mutable", "can be changed", Mutable): "implementation_is_immutable",
    Provider("no-value", "two alike differ", NoValue): "implementation_is_immutable",
    Provider("holds-a-lock", "cannot be pickled", HoldsALock): "implementation_can_be_pickled",
    Provider("draws-when-made", "uses global randomness", DrawsWhenMade): "building_uses_no_global_randomness",
}
