"""A check of the conformance kit: a small function that raises if a plugin lacks one behaviour."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from polyprune_core.plugins.options import build
from polyprune_core.plugins.registry import Registered

Seen = TypeVar("Seen")


class NotRun(Exception):
    """Raised by a check that does not apply to this plugin; the message says why."""


@dataclass(frozen=True)
class Check:
    """One check of the conformance kit.

    Attributes:
        name: the name of the check.
        kind: the kind of plugin that it is for; empty for all kinds.
        run: a function of a registered plugin. It raises AssertionError with what is wrong, or NotRun.
        after: names of checks that must pass first, because otherwise this one would only repeat their failure.
        excusable: whether a plugin may be right to fail it and declare that in its provider's `xfail`. Behaviour that a
            run insists on, or that other plugins rely on, is not excusable.
    """

    name: str
    kind: str
    run: Callable[[Registered], None]
    after: tuple[str, ...]
    excusable: bool

    @property
    def summary(self) -> str:
        """First line of what the check says about itself."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


CHECKS: list[Check] = []
SEED = 724_551


def check(
    kind: str, *after: str, excusable: bool = False
) -> Callable[[Callable[[Registered], None]], Callable[[Registered], None]]:
    """Adds the function to the kit under its own name, for plugins of `kind` ("" for all)."""

    def add(run: Callable[[Registered], None]) -> Callable[[Registered], None]:
        CHECKS.append(Check(run.__name__, kind, run, after, excusable))
        return run

    return add


def require(condition: object, message: str) -> None:
    """Raises AssertionError with `message` unless the condition holds; unlike `assert` also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def made(plugin: Registered) -> Any:
    """Returns the plugin's implementation with its quick options, the others at their defaults."""
    return build(plugin.kind, plugin.provider, plugin.provider.quick)


def by_default(plugin: Registered) -> Any:
    """Returns the plugin's implementation with its default options."""
    return build(plugin.kind, plugin.provider, {})


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raises AssertionError where the two differ by more than `tolerance` times the largest expected entry."""
    largest = float(expected.abs().max())
    gap = float((found.double() - expected.double()).abs().max())
    require(gap <= tolerance * largest, f"{what}: they differ by up to {gap:.3g}, where the largest is {largest:.3g}")


def for_each_plugin(look: Callable[[Registered], Seen]) -> Callable[[Registered], Seen]:
    """Has `look` called once for all checks of a plugin, which come after one another."""
    last: list[tuple[Registered, Seen]] = []

    def seen(plugin: Registered) -> Seen:
        if not last or last[0][0] is not plugin:
            last[:] = [(plugin, look(plugin))]
        return last[0][1]

    return seen


@contextmanager
def world_restored() -> Iterator[None]:
    """Puts the global generators and the gradient mode back as they were, whatever the block does to them."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    with torch.set_grad_enabled(True):
        try:
            yield
        finally:
            torch.set_rng_state(states[0])
            random.setstate(states[1])
            np.random.set_state(states[2])


@dataclass
class Draws:
    """Notes which generators that others share are drawn from, or seeded, in a `with` block.

    They are seeded first with a number that no plugin would choose, and so left: use it within `world_restored`.
    """

    used: str = ""

    def __enter__(self) -> Self:
        _seed()
        self._expected = _drawn()
        _seed()
        return self

    def __exit__(self, *_: object) -> None:
        used = [name for name, number in _drawn().items() if number != self._expected[name]]
        self.used = f"the global generator of {' and of '.join(used)} was drawn from or seeded" if used else ""


@contextmanager
def global_randomness_unused() -> Iterator[None]:
    """Raises AssertionError if the block draws from, or seeds, a generator that others share; see `Draws`."""
    with Draws() as draws:
        yield
    require(not draws.used, draws.used)


def _seed() -> None:
    torch.manual_seed(SEED)
    random.seed(SEED)
    np.random.seed(SEED)


def _drawn() -> dict[str, float]:
    return {"torch": float(torch.rand(())), "random": random.random(), "numpy.random": float(np.random.rand())}
