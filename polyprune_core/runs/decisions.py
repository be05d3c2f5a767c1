"""A decision that was made before, by its place: masks, or a finished cell of a results store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from polyprune_core.errors import ConfigError
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.mask_file import HEADER, MaskFile
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.runs.inputs import decision_place, model_place
from polyprune_core.runs.stored_cell import FinishedCell, find_cell


@dataclass(frozen=True)
class Decided:
    """What was decided about which dense model, `name` at `revision`; `elsewhere`: the user has said where that is."""

    decision: MaskFile | FinishedCell
    place: Path
    name: str
    revision: str | None
    elsewhere: bool

    @classmethod
    def at(cls, source: Path, cell: str | None, model: str | None) -> Decided:
        """Returns the masks at `source`, or the cell of a store that `cell`, the beginning of its id, names.

        `model` is another place of the dense model than the decision names.

        Raises:
            ConfigError: there is no such store or cell, more than one, or `cell` is given for masks.
            ModelError: the masks cannot be read.
        """
        place = decision_place(source)
        if cell is not None and (place / HEADER).is_file():
            raise ConfigError(f"--cell {cell} is about a results store, and {place} holds masks; leave it out.")
        decision = MaskFile.read(place) if (place / HEADER).is_file() else find_cell(source, cell)
        if model:
            return cls(decision, place, model, None, True)
        if isinstance(decision, FinishedCell):
            return cls(decision, place, decision.model, decision.revision, False)
        return cls(decision, place, decision.base_name, decision.recipe.get("revision"), False)

    @property
    def read(self) -> dict[str, Path]:
        """The places on this machine that it is read from, by what they are."""
        return {"what was decided,": self.place} | model_place(self.name, self.revision)

    def apply(self, base: LoadedModel, registry: Registry) -> PrunedModel:
        """Returns the pruned model; `base` is the dense one.

        Raises:
            ModelError: `base` is not the model that the decision is about, or its units are others.
        """
        known, where = self.decision, {"revision": None} if self.elsewhere else {}
        pruned = known.apply(base, registry) if isinstance(known, FinishedCell) else known.apply(base)
        return dataclasses.replace(pruned, recipe=pruned.recipe | where)


def holds_decision(source: Path) -> bool:
    """Whether `source` is or lies in a folder of masks or a results store."""
    place = decision_place(source)
    return (place / HEADER).is_file() or (place / "cells").is_dir()
