"""A decision that was made before, by its place: masks, or a finished cell of a results store."""

from __future__ import annotations

from pathlib import Path

from polyprune_core.errors import ConfigError
from polyprune_core.pruning.mask_file import HEADER, MaskFile
from polyprune_core.runs.inputs import decision_place
from polyprune_core.runs.stored_cell import FinishedCell, find_cell


def holds_decision(source: Path) -> bool:
    """Whether `source` is or lies in a folder of masks or a results store."""
    place = decision_place(source)
    return (place / HEADER).is_file() or (place / "cells").is_dir()


def open_decision(source: Path, cell: str | None) -> MaskFile | FinishedCell:
    """Returns the masks at `source`, or the cell of a store that `cell`, the beginning of its id, names.

    Raises:
        ConfigError: there is no such store or cell, more than one, or `cell` is given for masks.
        ModelError: the masks cannot be read.
    """
    place = decision_place(source)
    if not (place / HEADER).is_file():
        return find_cell(source, cell)
    if cell is not None:
        raise ConfigError(f"--cell {cell} is about a results store, and {place} holds masks; leave it out.")
    return MaskFile.read(place)


def dense_of(decision: MaskFile | FinishedCell, asked: str | None) -> tuple[str, str | None]:
    """Returns name and revision of the dense model; `asked` is another place that it is at."""
    if asked:
        return asked, None
    if isinstance(decision, FinishedCell):
        return decision.model, decision.revision
    return decision.base_name, decision.recipe.get("revision")
