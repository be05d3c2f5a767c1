"""What a comparison would do: its cells, what each costs, which are finished. Nothing is run, fetched or written."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core.config.cell import AnyCell, Cell, Pruned
from polyprune_core.config.grid import cell_id, cells
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.text import load_texts, parts_of
from polyprune_core.models.catalogue import catalogue
from polyprune_core.models.checkpoint import count_parameters, read_config, stored_dtype, weights_sha256
from polyprune_core.models.sources import local_folder
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.runs import cost_estimate as estimate
from polyprune_core.runs.cell_identity import Sources, identity, used_plugins
from polyprune_core.runs.cost_estimate import Estimate
from polyprune_core.runs.preflight import check_plugins, settled
from polyprune_core.utils.files import read_json

if TYPE_CHECKING:
    from polyprune_core.runs.accounting import Account

State = Literal["finished", "started", "broken", "to do", "not known"]


@dataclass(frozen=True)
class PlannedCell:
    """A cell that is to be: `row` is the finished one, or blank.

    `forward_tokens` is what its row counts; `work` is what is left to do in forward tokens, evaluation included;
    `parameters` is about what the model is left with, where its configuration is at hand.
    """

    row: Row
    state: State
    forward_tokens: int
    work: int
    parameters: int | None = None


@dataclass(frozen=True)
class Plan:
    """All cells in table order, and what they will take; `notes` say what could not be found out.

    `parameters` counts those of the model, `prunable` those that each granularity may remove.
    """

    cells: list[PlannedCell]
    speed: Estimate
    memory_mb: Estimate
    notes: list[str]
    parameters: int | None = None
    prunable: Mapping[str, int] = field(default_factory=dict)

    @property
    def forward_tokens(self) -> int:
        """What the rows count in all."""
        return sum(cell.forward_tokens for cell in self.cells)

    @property
    def work(self) -> int:
        """Tokens that are still to go through the model, evaluation included."""
        return sum(cell.work for cell in self.cells)

    @property
    def seconds(self) -> float | None:
        """How long the rest may take."""
        return self.work / self.speed.value if self.speed.value else None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        cells = [{**vars(cell), "row": cell.row.to_json()} for cell in self.cells]
        totals = {name: getattr(self, name) for name in ("forward_tokens", "work", "seconds")}
        return dataclasses.asdict(dataclasses.replace(self, cells=[])) | {"cells": cells, **totals}


@dataclass(frozen=True)
class Stored:
    """What a store holds of a grid: rows by cell (failed where the file is broken), searches begun, measurements."""

    rows: Mapping[Cell, Row] = field(default_factory=dict)
    begun: frozenset[Cell] = frozenset()
    measured: Sequence[Row] = ()
    known: bool = True


def plan(config: Comparison, registry: Registry, output: Path) -> Plan:
    """Returns what `compare` would do with this request and results store.

    Raises:
        PolypruneError: the name of a plugin, of the model or of a text cannot be used, no family describes the model,
            or a budget cannot be met.
    """
    config = settled(config, registry)
    sources = check_plugins(config, registry)
    folder = local_folder(config.model, config.revision)
    stored, notes = _look_up(config, sources, folder, output)
    evaluation = estimate.evaluation_tokens(config)
    if evaluation is None:
        notes.append(
            f"the time leaves out evaluations: {' or '.join(config.evaluation)} is not on this machine, nor is --limit "
            "given"
        )
    entry = catalogue().get(config.model)
    known = entry.parameters if entry else None
    parameters = count_parameters(folder) if folder else known
    found = _account(folder, config, registry) if folder else None
    units = found.units if found else {}
    work = estimate.work_of(config, registry, evaluation or 0, stored.rows, units)
    return Plan(
        [
            _planned(cell, stored, found, work[cell], estimate.tokens_of(cell, config, registry, units))
            for cell in cells(config)
        ],
        estimate.speed(config, parameters, stored.measured),
        estimate.memory(config, registry, parameters, stored.measured, _sizes(folder)),
        notes,
        found.parameters if found else known,
        found.prunable if found else {},
    )


def _account(folder: Path, config: Comparison, registry: Registry) -> Account:
    """Returns what the cells would leave; torch is imported for it."""
    from polyprune_core.runs.accounting import account

    return account(folder, config, registry)


def _sizes(folder: Path | None) -> dict[str, Any]:
    return read_config(folder) | {"dtype": stored_dtype(folder)} if folder else {}


def _planned(cell: AnyCell, stored: Stored, found: Account | None, work: int, tokens: int) -> PlannedCell:
    row = stored.rows.get(cell)
    if row and row.status == "ok":
        return PlannedCell(row, "finished", row.forward_tokens, work, row.parameters_kept)
    state: State = "broken" if row else "started" if cell in stored.begun else "to do" if stored.known else "not known"
    left = found.left.get(cell, None if isinstance(cell, Pruned) else found.parameters) if found else None
    return PlannedCell(row or Row("", cell), state, tokens, work, left)


def _look_up(config: Comparison, sources: Sources, folder: Path | None, output: Path) -> tuple[Stored, list[str]]:
    """Returns what the store holds of the grid, and notes. Torch is imported only where it holds anything."""
    if not any((output / "cells").glob("*")):
        return Stored(), []
    distant = [] if folder else [f"the model {config.model}"]
    distant += [f"the text {name}" for name in (config.calibration, *config.evaluation) if _is_distant(name)]
    if distant or folder is None:
        return Stored(known=False), [
            f"what {output} holds is not known: {' and '.join(distant)} is not on this machine"
        ]
    from polyprune_core.models.placement import pick_device, pick_dtype
    from polyprune_core.results.store import Store
    from polyprune_core.search.checkpoint import Checkpoint

    texts = load_texts(config.calibration, config.evaluation, config.text_column).hashes
    device = pick_device(config.device)
    dtype = str(pick_dtype(config.dtype, device, stored_dtype(folder)))
    shared = identity(config, weights_sha256(folder), folder, dtype, device.type, texts)
    store, begun, notes = Store(output), set(), []
    rows: dict[Cell, Row] = {}
    for cell in cells(config):
        plugins = used_plugins(cell, sources)
        key = cell_id(cell, config, shared | {"plugins": plugins})
        try:
            row = store.read(key)
        except ConfigError as error:
            row = Row(key, cell, plugins=plugins, status="failed", error=str(error))
            notes.append(str(error))
        if row:
            rows[cell] = row
        elif store.checkpoint(key).exists() or Checkpoint(store.checkpoint(key), key).of_repair().path.exists():
            begun.add(cell)
    measured = [row for row in rows.values() if row.status == "ok"] or _earlier_rows(output, shared)
    return Stored(rows, frozenset(begun), measured), notes


def _is_distant(text: str) -> bool:
    parts = [part for part in parts_of(text) if not part.startswith("builtin:")]
    return any("/" in part and not os.path.exists(os.path.expanduser(part)) for part in parts)


def _earlier_rows(output: Path, shared: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of the store's last results, if they are of the same model in the same number format."""
    try:
        results = Results.from_json(read_json(output / "results.json"))
        model = results.model
        of = (model["sha256"], f"torch.{model['dtype']}", model["device"].partition(":")[0])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    same = of == (shared["weights"], shared["dtype"], shared["device"])
    return [row for row in results.rows if row.status == "ok"] if same else []
