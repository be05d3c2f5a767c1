"""Cells given to workers elsewhere, each with the model and the texts opened; rows come back into one store.

Cells that differ in their repair alone go to one worker together: they share what was decided.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from polyprune_core.config.cell import AnyCell, Cell
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError, WorkerError
from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.cell_row import finished
from polyprune_core.runs.cost_estimate import evaluation_tokens, work_of
from polyprune_core.runs.engines import engine_of, threads_of, workers_of
from polyprune_core.runs.preflight import check_plugins
from polyprune_core.runs.workplace import Workplace
from polyprune_core.utils.crew import Call, Crew, Done, Tell
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.relay import Relay, Shown

PASSING = (".lock", ".search.safetensors", ".repair.safetensors")


@dataclass(frozen=True)
class Opened:
    """What a workplace found out: the record of the run, and the row that each cell is to fill."""

    record: dict[str, Any]
    blanks: dict[AnyCell, Row]


@dataclass(frozen=True)
class Worked:
    """Rows, None where another process has the cell; what could not be written; and files of a store not shared."""

    rows: list[Row | None]
    unwritten: list[Path]
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """Opens a workplace in a worker. `mark` tells whether the store's folder is the one that the driver sees."""

    config: Comparison
    cells: tuple[AnyCell, ...]
    folder: Path
    mark: str

    def __call__(self, tell: Tell) -> Desk:
        torch.set_num_threads(threads_of(self.config))
        return Desk(self, Relay(tell))


class Desk:
    """A workplace in a worker. Its store is the driver's where it can see that, or else a folder of its own."""

    def __init__(self, opening: Opening, reporter: Reporter) -> None:
        self._own: TemporaryDirectory[str] | None = None
        folder = opening.folder
        if not (folder / "cells" / opening.mark).exists():
            self._own = TemporaryDirectory(prefix="polyprune-cells-")
            folder = Path(self._own.name)
        self.store = Store(folder)
        self.place = Workplace(opening.config, opening.cells, load_registry(), self.store, reporter).__enter__()

    def opened(self) -> Opened:
        """Returns what was found out."""
        return Opened(self.place.record, self.place.blanks)

    def rows(self, blanks: Sequence[Row], wait: bool) -> Worked:
        """Runs the cells of these rows.

        Raises:
            WorkerError: here they would be other cells.
        """
        for blank in blanks:
            if self.place.blanks[blank.cell].id != blank.id:
                raise WorkerError(
                    f"{blank.cell.label} has another id in one of the workers: the model, a text, a plugin, the number "
                    "format or the kind of device is not the same there. Give --dtype and --device, and the same files."
                )
        self.store.unwritten.clear()
        rows = [self.place.row(blank.cell, wait) for blank in blanks]
        return Worked(rows, list(self.store.unwritten), self._files(blanks))

    def _files(self, blanks: Sequence[Row]) -> dict[str, bytes]:
        if self._own is None:
            return {}
        paths = [path for blank in blanks for path in self.store.cells.glob(f"{blank.id}*")]
        return {path.name: path.read_bytes() for path in paths if not path.name.endswith(PASSING)}


class Crewed:
    """Runs cells on the workers of an engine, as many at a time as there are workers."""

    def __init__(self, registry: Registry, store: Store, reporter: Reporter) -> None:
        self.registry, self.store, self.reporter = registry, store, reporter
        self.record: dict[str, Any] = {}

    def map(self, config: Comparison, cells: Sequence[AnyCell]) -> Iterator[Row]:
        """Yields rows; cells that another run on the store has come last."""
        check_plugins(config, self.registry)
        work = work_of(config, self.registry, evaluation_tokens(config) or 1)
        groups = grouped(cells, work)
        engine = engine_of(config, config.device, talking=True)
        size = min(workers_of(config, engine), len(groups))
        config = config.model_copy(update={"workers": config.workers or size})
        with self._marked() as mark:
            opening = Opening(config, tuple(cells), self.store.folder.absolute(), mark)
            with Shown(self.reporter) as shown, Crew(engine, opening, size, shown, config.patience) as crew:
                yield from self._rows(crew, groups)

    def _rows(self, crew: Crew, groups: list[list[AnyCell]]) -> Iterator[Row]:
        (first,) = crew.results([Call("opened")])
        if first.error:
            raise first.error
        opened: Opened = first.value
        self.record = opened.record
        left = list[list[Row]]()
        for group in groups:
            found = {cell: finished(opened.blanks[cell], self.store) for cell in group}
            yield from (row for row in found.values() if row)
            left += [[opened.blanks[cell] for cell, row in found.items() if row is None]]
        for wait in (False, True):
            asked = [blanks for blanks in left if blanks]
            left = []
            for done in crew.results([Call("rows", (blanks, wait)) for blanks in asked]):
                rows = self._taken(done, asked[done.index])
                yield from (row for row in rows if row)
                left.append([blank for blank, row in zip(asked[done.index], rows, strict=True) if row is None])

    def _taken(self, done: Done, blanks: list[Row]) -> list[Row | None]:
        """Returns rows, of a call that failed one with the reason for each of its cells that nobody had finished."""
        if done.error:
            return [
                finished(blank, self.store) or replace(blank, status="failed", error=str(done.error))
                for blank in blanks
            ]
        worked: Worked = done.value
        self.store.unwritten += worked.unwritten
        # The row comes last: with it the cell is finished.
        for name, content in sorted(worked.files.items(), key=lambda item: item[0].endswith(".json")):
            try:
                write_atomically(self.store.cells / name, content)
            except ConfigError as error:
                self.store.unwritten.append(self.store.cells / name)
                self.reporter.warn(str(error))
        return worked.rows

    @contextmanager
    def _marked(self) -> Iterator[str]:
        """Leaves a sign in the store while the block runs: who finds it there shares the store."""
        mark = f".shared-{secrets.token_hex(8)}"
        self.store.make()
        path = self.store.cells / mark
        write_atomically(path, b"")
        try:
            yield mark
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def grouped(cells: Sequence[AnyCell], work: Mapping[Cell, float]) -> list[list[AnyCell]]:
    """Returns the cells in groups that share a decision, those with most to do first."""
    groups: dict[Cell, list[AnyCell]] = {}
    for cell in cells:
        groups.setdefault(cell if cell.kind == "dense" else cell.without("repair"), []).append(cell)
    return sorted(groups.values(), key=lambda group: -sum(work[cell] for cell in group))
