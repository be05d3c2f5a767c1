"""Plugins with one fault each, by kind, and the check of the kit that is meant for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from broken import estimators, exporters, granularities, initializers, policies, providers, repairs
from polyprune_core import Provider

MODULES = {
    "granularity": granularities,
    "initializer": initializers,
    "policy": policies,
    "estimator": estimators,
    "repair": repairs,
    "exporter": exporters,
}
NEEDS = {
    initializers.MeanOfBatchMeans: "calibration",
    initializers.NoFinally: "calibration",
    repairs.NoFinally: "calibration",
    repairs.UndeclaredGradients: "calibration",
}


def faults() -> Iterator[tuple[str, Provider[Any], str]]:
    """Yields the kind, the provider and the name of the check that has to catch it."""
    for provider, check in providers.FAULTS.items():
        yield "granularity", provider, check
    for kind, module in MODULES.items():
        for broken, check in module.FAULTS.items():
            needs = frozenset({NEEDS[broken]} if broken in NEEDS else ())
            name = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", broken.__name__).lower()
            yield kind, Provider(name, "has one fault", broken, needs), check
