"""What a cell's result depends on besides its settings, as hashes and versions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyprune_core.config.cell import Cell, Search, Start
from polyprune_core.config.settings import Comparison
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.models.checkpoint import settings_sha256
from polyprune_core.version import __version__

Sources = Mapping[str, Mapping[str, str]]


def identity(
    config: Comparison, weights: str, folder: Path | None, dtype: str, device: str, texts: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what all cells of one model on its texts share.

    `weights` is a SHA-256 and `texts` are those of `Texts.hashes`, `folder` is where the model's configuration and
    tokenizer lie, `dtype` is torch's name of it and `device` its type.
    """
    return {
        "polyprune": __version__,
        "weights": weights,
        "settings": settings_sha256(folder) if folder else None,
        "dtype": dtype,
        "device": device,
        **texts,
        **_tasks(config),
    }


def _tasks(config: Comparison) -> dict[str, Any]:
    if not config.tasks:
        return {}
    from polyprune_core.evaluation import tasks

    return {"tasks": tasks.identity(config.tasks, config.include_path, config.num_fewshot, config.tasks_limit)}


def used_plugins(cell: Cell, sources: Sources) -> dict[str, str]:
    """Returns the distribution and version of each plugin that the cell uses; `sources` is {role: {spec: these}}."""
    used = {}
    for part in (cell.granularity or "").split("+"):
        if part:
            used[f"granularity {part}"] = sources["granularity"][part]
    if cell.initializer:
        used["initializer"] = sources["initializer"][cell.initializer]
    if isinstance(cell, Start | Search):
        (used["policy"],) = sources["policy"].values()
    if cell.estimator:
        used["estimator"] = sources["estimator"][cell.estimator]
    if cell.repair:
        used["repair"] = sources["repair"][cell.repair]
    if target := ShapesSpec.parse(cell.shapes).target:
        used["target"] = sources["exporter"][target]
    return used
