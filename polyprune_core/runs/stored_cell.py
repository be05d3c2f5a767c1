"""A finished cell of a results store as a decision: which units of which model stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.provenance import last_name
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import Scores, Selection
from polyprune_core.report.commands import command_of_row, portable
from polyprune_core.report.naming import TELL_APART, label
from polyprune_core.results.cell_file import Details, path_of, read_details
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.utils.numbers import exp

LISTED = 8


@dataclass(frozen=True)
class FinishedCell:
    """A row and what it kept of the units (U,); `config` is that of its comparison, `sha256` of its dense weights."""

    row: Row
    keep: Tensor
    scores: Tensor
    updates: dict[str, Tensor]
    config: dict[str, Any]
    sha256: str

    @property
    def model(self) -> str:
        """What to load the dense model by."""
        return str(self.config["model"])

    @property
    def revision(self) -> str | None:
        """The dense model's revision on the hub, if one was asked for."""
        return self.config.get("revision")

    def apply(self, base: LoadedModel, registry: Registry) -> PrunedModel:
        """Returns the pruned model.

        Raises:
            ModelError: `base` is not the model that the cell is of, or its units are not those of the cell.
        """
        if base.sha256 != self.sha256:
            raise ModelError(
                f"cell {self.row.id} is of {self.model} with weights sha256 {self.sha256[:12]}…, but {base.name} has "
                f"{base.sha256[:12]}…. Give the model that it was made from as --model."
            )
        layout, granularity = describe(base.model), self.row.cell.granularity or ""
        space = registry.space(granularity, layout)
        if len(space) != len(self.keep):
            raise ModelError(
                f"cell {self.row.id} decided about {len(self.keep)} units, but {granularity} finds {len(space)} in "
                f"{base.name}: the plugin has changed since. Run the comparison again."
            )
        selection = Selection(self.keep, int(space.cost[self.keep].sum()), space.total_cost)
        source = self.row.cell.estimator or self.row.cell.initializer or ""
        recipe = self.row.cell.model_dump(mode="json", exclude={"kind"}) | self.row.pooling
        recipe |= {"revision": self.revision, "min_keep": self.config.get("min_keep", 1)}
        recipe |= {"protect": self.config.get("protect"), "cell": self.row.id}
        recipe |= {"command": command_of_row(self.row, portable(self.config), (self.row.cell.seed or 0,))}
        scores = Scores(self.scores, source)
        return PrunedModel(base, space, selection, scores, None, recipe, self.updates, self.measured)

    @property
    def measured(self) -> tuple[dict[str, Any], ...]:
        """What the row says that its model scores, as `PrunedModel.measured`."""
        return tuple(
            {
                "text": last_name(each.text),
                "window": each.seq_len,
                "tokens": each.tokens,
                "perplexity": exp(each.nll),
                "dense": exp(each.nll - each.excess),
            }
            for each in self.row.evaluations
            if each.nll is not None and each.excess is not None
        )


def find_cell(path: Path, cell: str | None) -> FinishedCell:
    """Returns the cell of a store that `cell`, the beginning of its id, names; `path` is the store or a cell's file.

    Raises:
        ConfigError: there is no such store or cell, more than one, or it holds no decision.
    """
    if path.suffix == ".json" and path.parent.name == "cells":
        if cell and not path.stem.startswith(cell):
            raise ConfigError(f"--cell {cell} is not the cell of {path}; give one of the two.")
        path, cell = path.parent.parent, path.stem
    if not (path / "cells").is_dir():
        raise ConfigError(f"{path} is no folder of masks and no results store; give one of the two, or a cell's file.")
    store = Store(path)
    rows = [store.read(file.stem) for file in sorted(store.cells.glob("*.json"))]
    pruned = [row for row in rows if row and row.cell.kind != "dense" and row.status == "ok"]
    found = [row for row in pruned if row.id.startswith(cell or "")]
    if len(found) != 1:
        which = f"{path} has {len(pruned)} pruned cells"
        if cell:
            which = f"{len(found)} cells of {path} begin with {cell!r}"
        listed = [_told(row) for row in found or pruned]
        shown = ", ".join(listed[:LISTED]) + (f" and {len(listed) - LISTED} more" if len(listed) > LISTED else "")
        raise ConfigError(f"{which}; give one with --cell: {shown or 'there is none'}.")
    return _read(store, found[0])


def _told(row: Row) -> str:
    return f"{row.id} ({label(row, frozenset(TELL_APART))}, {row.cell.asked}, seed {row.cell.seed})"


def _read(store: Store, row: Row) -> FinishedCell:
    path = path_of(store.cells, row.id)
    return finished_cell(row, read_details(path), str(path))


def finished_cell(row: Row, details: Details | None, where: str) -> FinishedCell:
    """Returns what a row and the details beside it decided; `where` says in an error where they were read.

    Raises:
        ConfigError: they do not hold what the cell kept.
    """
    if details is None or details.keep is None or details.scores is None:
        raise ConfigError(f"{where} does not hold what the cell kept. Run the comparison again in a new --output.")
    run = details.run
    keep, scores = torch.from_numpy(details.keep), torch.from_numpy(details.scores)
    updates = {name: torch.from_numpy(value) for name, value in details.updates.items()}
    return FinishedCell(row, keep, scores, updates, run["config"], run["model"]["sha256"])
