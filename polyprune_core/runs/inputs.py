"""What a request reads, so that no output is put in its place."""

from __future__ import annotations

import os
from pathlib import Path

from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ModelError
from polyprune_core.evaluation.text import parts_of
from polyprune_core.models.catalogue import local_path
from polyprune_core.models.sources import local_folder
from polyprune_core.pruning.mask_file import HEADER, TENSORS


def inputs(config: Comparison) -> dict[str, Path]:
    """Returns the places on this machine that a grid reads, by what they are."""
    tasks = {"the folder of tasks": config.include_path} if config.include_path else {}
    texts = {
        f"the {role} text {name}": Path(os.path.expanduser(name))
        for role, given in (("calibration", (config.calibration,)), ("evaluation", config.evaluation))
        for text in given
        for name in parts_of(text)
    }
    return model_place(config.model, config.revision) | texts | tasks


def decision_place(source: Path) -> Path:
    """Returns the folder of masks, or the results store, that `source` is or lies in."""
    if source.name in (HEADER, TENSORS):
        return source.parent
    return source.parent.parent if source.parent.name == "cells" else source


def model_place(name: str, revision: str | None) -> dict[str, Path]:
    """Returns where the model called `name` lies; nothing where it is not on this machine."""
    try:
        place = local_path(name) or local_folder(name, revision)
    except ModelError:
        return {}
    return {"the model": place} if place else {}
