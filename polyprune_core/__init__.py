"""polyprune: structural pruning criteria for language models through one harness.

The names below are what notebooks, scripts and plugins may import. Those that need torch or
NumPy are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, ModelError, PluginError, PolypruneError
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.plugins.contracts import (
    BoundPolicy,
    Exporter,
    GradientEstimator,
    Granularity,
    Initializer,
    Provider,
    Repair,
    Runtime,
    SearchPolicy,
    State,
)
from polyprune_core.plugins.decorator import initializer
from polyprune_core.plugins.deprecation import PluginDeprecationWarning, deprecated
from polyprune_core.plugins.hookspecs import API_VERSION, hookimpl
from polyprune_core.pruning.types import ExportReport, LegalShapes, MaskBatch, Policy, Scores, Selection, UnitGroup
from polyprune_core.version import __version__ as __version__

if TYPE_CHECKING:
    from polyprune_core.api.calls import compare, evaluate, load_results, prune, recover
    from polyprune_core.api.comparison import ComparisonResults
    from polyprune_core.config.protect import Protect
    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.evaluation.layerwise import Seen
    from polyprune_core.evaluation.removal import Removal, removals
    from polyprune_core.evaluation.training import train, trainable
    from polyprune_core.models.remote_code import register_models
    from polyprune_core.models.sources import LoadedModel, assemble_model, load_model
    from polyprune_core.pruning.budget import SelectionRule
    from polyprune_core.pruning.mask_file import MaskFile, write_masks
    from polyprune_core.pruning.padding import padded
    from polyprune_core.pruning.provenance import export_report
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.readers import Reader
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.starting import PolicyStart
    from polyprune_core.pruning.writable import check_writable, write_model, write_settings
    from polyprune_core.runs.evaluation_report import Findings
    from polyprune_core.runs.pruning_result import PruningResult
    from polyprune_core.runs.recover import Recovered
    from polyprune_core.search.fixed_size import ExactSize
    from polyprune_core.utils.files import check_shard_size

_LAZY = {
    "Calibration": "polyprune_core.evaluation.calibration",
    "ComparisonResults": "polyprune_core.api.comparison",
    "ExactSize": "polyprune_core.search.fixed_size",
    "Findings": "polyprune_core.runs.evaluation_report",
    "LoadedModel": "polyprune_core.models.sources",
    "MaskFile": "polyprune_core.pruning.mask_file",
    "MaskSpace": "polyprune_core.pruning.space",
    "PolicyStart": "polyprune_core.pruning.starting",
    "Protect": "polyprune_core.config.protect",
    "PrunedModel": "polyprune_core.pruning.pruned_model",
    "PruningResult": "polyprune_core.runs.pruning_result",
    "Reader": "polyprune_core.pruning.readers",
    "Seen": "polyprune_core.evaluation.layerwise",
    "Recovered": "polyprune_core.runs.recover",
    "Removal": "polyprune_core.evaluation.removal",
    "SelectionRule": "polyprune_core.pruning.budget",
    "assemble_model": "polyprune_core.models.sources",
    "check_shard_size": "polyprune_core.utils.files",
    "check_writable": "polyprune_core.pruning.writable",
    "compare": "polyprune_core.api.calls",
    "evaluate": "polyprune_core.api.calls",
    "export_report": "polyprune_core.pruning.provenance",
    "load_model": "polyprune_core.models.sources",
    "load_results": "polyprune_core.api.calls",
    "padded": "polyprune_core.pruning.padding",
    "prune": "polyprune_core.api.calls",
    "recover": "polyprune_core.api.calls",
    "register_models": "polyprune_core.models.remote_code",
    "removals": "polyprune_core.evaluation.removal",
    "train": "polyprune_core.evaluation.training",
    "trainable": "polyprune_core.evaluation.training",
    "write_masks": "polyprune_core.pruning.mask_file",
    "write_model": "polyprune_core.pruning.writable",
    "write_settings": "polyprune_core.pruning.writable",
}

__all__ = [
    "API_VERSION",
    "Axis",
    "BoundPolicy",
    "Calibration",
    "ComparisonResults",
    "ConfigError",
    "Cut",
    "ExactSize",
    "ExportReport",
    "Exporter",
    "Findings",
    "GradientEstimator",
    "Granularity",
    "Initializer",
    "LegalShapes",
    "LoadedModel",
    "MaskBatch",
    "MaskFile",
    "MaskSpace",
    "ModelError",
    "ModelLayout",
    "PluginDeprecationWarning",
    "PluginError",
    "Policy",
    "PolicyStart",
    "PolypruneError",
    "Protect",
    "Provider",
    "PrunedModel",
    "PruningResult",
    "Reader",
    "Recovered",
    "Removal",
    "Repair",
    "Runtime",
    "Scores",
    "SearchPolicy",
    "Seen",
    "Selection",
    "SelectionRule",
    "State",
    "UnitGroup",
    "assemble_model",
    "check_shard_size",
    "check_writable",
    "compare",
    "deprecated",
    "evaluate",
    "export_report",
    "hookimpl",
    "initializer",
    "load_model",
    "load_results",
    "padded",
    "prune",
    "recover",
    "register_models",
    "removals",
    "train",
    "trainable",
    "write_masks",
    "write_model",
    "write_settings",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
