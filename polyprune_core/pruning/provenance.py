"""What every exporter writes alike: where a pruned model comes from, and which files were written."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from polyprune_core.models.catalogue import catalogue
from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.pruning.types import ExportReport
from polyprune_core.version import __version__

if TYPE_CHECKING:
    from polyprune_core.pruning.pruned_model import PrunedModel


def provenance(pruned: PrunedModel) -> dict[str, Any]:
    """Returns a JSON-able record of how a model was pruned; of absolute paths only the last name is left.

    Sparsities are fractions of the prunable parameters; `asked` is None where the recipe does not say.
    """
    selection = pruned.selection
    return {
        "version": __version__,
        "base": {"name": last_name(pruned.base.name), "sha256": pruned.base.sha256},
        "granularity": pruned.space.name,
        "sparsity": {"asked": pruned.recipe.get("sparsity"), "achieved": selection.sparsity},
        "parameters": {
            "dense": pruned.layout.total_parameters,
            "prunable": selection.total_cost,
            "kept_of_prunable": selection.kept_cost,
        },
        "recipe": without_paths(pruned.recipe),
    }


def kept_parameters(pruned: PrunedModel) -> int:
    """Returns the parameters of the smaller model, tied ones counted once."""
    removed = 0
    for name, keep in pruned.axis_keep().items():
        axis = pruned.layout.axis[name]
        kept = int(keep.sum())
        removed += (axis.size - kept) * axis.entry_parameters + (0 if kept else axis.module_parameters)
    return pruned.layout.total_parameters - removed


def export_report(out_dir: Path, format_name: str, reload: str, parameters: int, **details: Any) -> ExportReport:
    """Returns the report on everything now in `out_dir`."""
    written = sorted(path for path in out_dir.rglob("*") if path.is_file())
    return ExportReport(
        path=out_dir,
        format=format_name,
        files={path.relative_to(out_dir).as_posix(): file_sha256(path) for path in written},
        reload=reload,
        parameters=parameters,
        bytes=sum(path.stat().st_size for path in written),
        details=details,
    )


def local_path(name: str) -> Path | None:
    """Returns the file or folder that a model's name stands for, or None for one of the catalogue or the hub."""
    path = Path(os.path.expanduser(name))
    return path if name and name not in catalogue() and os.path.exists(path) else None


def last_name(text: str) -> str:
    """Returns `text`, or if it is an absolute path its last part."""
    if text.startswith("~") or PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return text


def without_paths(value: Any) -> Any:
    """Returns a JSON-able value with every absolute path in it replaced by its last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return last_name(str(value)) if isinstance(value, str | os.PathLike) else value
