"""The list of checks, from which the command line, authors' tests and polyprune's own tests all run."""

from __future__ import annotations

from polyprune_core.testing import estimator, exporter, granularity, initializer, policy, provider, repair
from polyprune_core.testing.checking import CHECKS, Check

__all__ = [
    "CHECKS",
    "Check",
    "checks_for",
    "estimator",
    "exporter",
    "granularity",
    "initializer",
    "policy",
    "provider",
    "repair",
]


def checks_for(kind: str) -> list[Check]:
    """Returns the checks of a kind of plugin, those that others build on first."""
    chosen = {check.name: check for check in CHECKS if check.kind in ("", kind)}
    ordered: dict[str, Check] = {}

    def add(name: str) -> None:
        for before in chosen[name].after:
            add(before)
        ordered.setdefault(name, chosen[name])

    for name in sorted(chosen, key=lambda name: chosen[name].kind):
        add(name)
    return list(ordered.values())
