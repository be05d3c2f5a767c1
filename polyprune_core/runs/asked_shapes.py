"""The widths that layers may have: what is asked for, and what the format to write holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import ConfigError
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.contracts import check_exportable
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes


def legal_shapes(asked: str | None, layout: ModelLayout, registry: Registry) -> LegalShapes:
    """Returns the widths that a cell's `shapes` allow; a target allows those of the exporter that it names."""
    spec = ShapesSpec.parse(asked)
    told = LegalShapes(dict(spec.multiple_of))
    if spec.target is None:
        return told
    return told.both(held_by(registry.build("exporter", spec.target), layout))


def held_by(exporter: Any, layout: ModelLayout) -> LegalShapes:
    """Returns what an exporter says that its format holds."""
    shapes: LegalShapes = exporter.legal_shapes(layout)
    return shapes


def check_shapes(
    asked: Iterable[str | None], spaces: Iterable[MaskSpace], loaded: LoadedModel, registry: Registry
) -> None:
    """Refuses widths of kinds that no selection is about, and targets that hold no smaller form of the model.

    Raises:
        PolypruneError: what was asked for cannot be had.
    """
    kinds = dict.fromkeys(kind for space in spaces for kind in space.kinds)
    for spec in map(ShapesSpec.parse, asked):
        for kind, number in spec.multiple_of:
            if kind not in kinds:
                raise ConfigError(
                    f"--multiple-of {kind}={number}: no unit of this kind is selected, only {', '.join(kinds)}; name "
                    "one of these, or another --granularity."
                )
        if spec.target is not None:
            check_exportable(registry.build("exporter", spec.target), loaded)
