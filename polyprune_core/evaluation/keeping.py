"""Where long work keeps its state, and what it had cost until then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from polyprune_core.evaluation.losses import Metered, counts


@dataclass(frozen=True)
class Kept:
    """The state of long work, and what it had cost when it was kept."""

    state: Mapping[str, Any]
    spent: Mapping[str, int]
    seconds: float


class Keeper(Protocol):
    """Where long work keeps its state, so that it can go on after an interruption."""

    def read(self, parse: Callable[[Any], Any]) -> Any:
        """Returns `parse(state)`, or None where none was kept."""

    def keep(self, state: Callable[[], Any]) -> None:
        """Keeps `state()`, if it is time to."""


def kept(found: Any) -> Kept:
    """Reads what was kept; raises KeyError, TypeError or ValueError where it is something else."""
    spent = {name: int(found["spent"][name]) for name in counts(Metered())}
    return Kept(dict(found["state"]), spent, float(found["seconds"]))
