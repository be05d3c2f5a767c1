"""polyprune: structural pruning criteria for language models through one harness.

The names below are what plugins may import. Those that need torch are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.plugins.contracts import Exporter, GradientEstimator, Granularity, Initializer, Provider, State
from polyprune_core.plugins.decorator import initializer
from polyprune_core.plugins.deprecation import PluginDeprecationWarning, deprecated
from polyprune_core.plugins.hookspecs import API_VERSION, hookimpl
from polyprune_core.pruning.types import ExportReport, MaskBatch, Policy, Scores, Selection, UnitGroup
from polyprune_core.version import __version__ as __version__

if TYPE_CHECKING:
    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.models.sources import LoadedModel
    from polyprune_core.pruning.budget import SelectionRule
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.search.fixed_size import ExactSize

_LAZY = {
    "Calibration": "polyprune_core.evaluation.calibration",
    "ExactSize": "polyprune_core.search.fixed_size",
    "LoadedModel": "polyprune_core.models.sources",
    "MaskSpace": "polyprune_core.pruning.space",
    "PrunedModel": "polyprune_core.pruning.pruned_model",
    "SelectionRule": "polyprune_core.pruning.budget",
}

__all__ = [
    "API_VERSION",
    "Axis",
    "Calibration",
    "ConfigError",
    "Cut",
    "ExactSize",
    "ExportReport",
    "Exporter",
    "GradientEstimator",
    "Granularity",
    "Initializer",
    "LoadedModel",
    "MaskBatch",
    "MaskSpace",
    "ModelLayout",
    "PluginDeprecationWarning",
    "PluginError",
    "Policy",
    "Provider",
    "PrunedModel",
    "Scores",
    "Selection",
    "SelectionRule",
    "State",
    "UnitGroup",
    "deprecated",
    "hookimpl",
    "initializer",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
