"""What a check is: a small function of one plugin that stands for one behaviour and raises where it is missing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyprune_core.plugins.options import build
from polyprune_core.plugins.registry import Registered


class NotRun(Exception):
    """A check that says nothing about this plugin, and why."""


@dataclass(frozen=True)
class Check:
    """One behaviour.

    Attributes:
        kind: the kind of plugin it is for; empty for all kinds.
        run: raises AssertionError with what is wrong, or NotRun.
        after: checks that must pass first: where they fail this one would only say the same again.
    """

    name: str
    kind: str
    run: Callable[[Registered], None]
    after: tuple[str, ...]

    @property
    def summary(self) -> str:
        """First line of what the check says about itself."""
        return (self.run.__doc__ or "").strip().partition("\n")[0]


CHECKS: list[Check] = []


def check(kind: str, *after: str) -> Callable[[Callable[[Registered], None]], Callable[[Registered], None]]:
    """Adds the function to the kit under its own name, for plugins of `kind` ("" for all)."""

    def add(run: Callable[[Registered], None]) -> Callable[[Registered], None]:
        CHECKS.append(Check(run.__name__, kind, run, after))
        return run

    return add


def require(condition: object, message: str) -> None:
    """Raises AssertionError with `message` unless the condition holds; unlike `assert` also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def made(plugin: Registered) -> Any:
    """Returns the plugin's implementation with its default options."""
    return build(plugin.kind, plugin.provider, {})


def require_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raises AssertionError where the two differ by more than `tolerance` times the largest expected entry."""
    largest = float(expected.abs().max())
    gap = float((found.double() - expected.double()).abs().max())
    require(gap <= tolerance * largest, f"{what}: they differ by up to {gap:.3g}, where the largest is {largest:.3g}")


@contextmanager
def global_randomness_unused() -> Iterator[None]:
    """Raises AssertionError if the block draws from, or seeds, a generator that others share; it is then put back."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)
    try:
        yield
        used = [
            name
            for name, same in {
                "torch": torch.equal(torch.get_rng_state(), before[0]),
                "random": random.getstate() == before[1],
                "numpy.random": repr(np.random.get_state(legacy=False)) == repr(before[2]),
            }.items()
            if not same
        ]
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])
    require(not used, f"the global generator of {' and of '.join(used)} was drawn from or seeded")
