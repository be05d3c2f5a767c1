"""polyprune: structural pruning criteria for language models through one harness.

The names below are what plugins may import. Those that need torch are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.plugins.contracts import (
    BoundPolicy,
    Exporter,
    GradientEstimator,
    Granularity,
    Initializer,
    Provider,
    Repair,
    SearchPolicy,
    State,
)
from polyprune_core.plugins.decorator import initializer
from polyprune_core.plugins.deprecation import PluginDeprecationWarning, deprecated
from polyprune_core.plugins.hookspecs import API_VERSION, hookimpl
from polyprune_core.pruning.types import ExportReport, LegalShapes, MaskBatch, Policy, Scores, Selection, UnitGroup
from polyprune_core.version import __version__ as __version__

if TYPE_CHECKING:
    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.models.remote_code import register_models
    from polyprune_core.models.sources import LoadedModel, load_model
    from polyprune_core.pruning.budget import SelectionRule
    from polyprune_core.pruning.mask_file import MaskFile, write_masks
    from polyprune_core.pruning.provenance import export_report
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.starting import PolicyStart
    from polyprune_core.pruning.writable import check_writable, write_model
    from polyprune_core.search.fixed_size import ExactSize

_LAZY = {
    "MaskFile": "polyprune_core.pruning.mask_file",
    "write_masks": "polyprune_core.pruning.mask_file",
    "check_writable": "polyprune_core.pruning.writable",
    "write_model": "polyprune_core.pruning.writable",
    "Calibration": "polyprune_core.evaluation.calibration",
    "ExactSize": "polyprune_core.search.fixed_size",
    "LoadedModel": "polyprune_core.models.sources",
    "MaskSpace": "polyprune_core.pruning.space",
    "PolicyStart": "polyprune_core.pruning.starting",
    "PrunedModel": "polyprune_core.pruning.pruned_model",
    "export_report": "polyprune_core.pruning.provenance",
    "load_model": "polyprune_core.models.sources",
    "SelectionRule": "polyprune_core.pruning.budget",
    "register_models": "polyprune_core.models.remote_code",
}

__all__ = [
    "API_VERSION",
    "Axis",
    "BoundPolicy",
    "Calibration",
    "ConfigError",
    "Cut",
    "ExactSize",
    "ExportReport",
    "Exporter",
    "GradientEstimator",
    "Granularity",
    "Initializer",
    "LegalShapes",
    "LoadedModel",
    "MaskBatch",
    "MaskFile",
    "MaskSpace",
    "ModelLayout",
    "PluginDeprecationWarning",
    "PluginError",
    "Policy",
    "PolicyStart",
    "Provider",
    "PrunedModel",
    "Repair",
    "Scores",
    "SearchPolicy",
    "Selection",
    "SelectionRule",
    "State",
    "UnitGroup",
    "check_writable",
    "deprecated",
    "export_report",
    "hookimpl",
    "initializer",
    "load_model",
    "register_models",
    "write_masks",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
