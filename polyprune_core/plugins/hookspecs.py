"""The four hooks. Each takes no argument and returns an iterable of `Provider`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from polyprune_core.plugins.contracts import Exporter, GradientEstimator, Granularity, Initializer, Provider

PROJECT = "polyprune"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def polyprune_granularities() -> Iterable[Provider[Granularity]]:
    """What a unit is: which entries of the model's axes are kept or removed together."""


@hookspec
def polyprune_initializers() -> Iterable[Provider[Initializer]]:
    """A metric: how much each unit matters."""


@hookspec
def polyprune_estimators() -> Iterable[Provider[GradientEstimator]]:
    """How the gradient of the expected loss is estimated from masks and their losses."""


@hookspec
def polyprune_exporters() -> Iterable[Provider[Exporter]]:
    """What is written out for a pruned model, and how it is read back."""
