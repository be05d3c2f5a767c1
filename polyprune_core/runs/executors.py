"""Who runs the cells of a comparison: this process here; engines for many machines fulfil the same contract."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from polyprune_core.config.cell import AnyCell, Cell
from polyprune_core.config.grid import cell_id
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.cell_identity import used_plugins
from polyprune_core.runs.cell_row import finished, run_cell
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.opening import open_harness, run_record, shared_identity
from polyprune_core.runs.preflight import check_plugins
from polyprune_core.utils.progress import Reporter


class Executor(Protocol):
    """Runs cells. The store and its locks are the truth: what it holds is read, and each cell is run by one process."""

    @property
    def record(self) -> dict[str, Any]:
        """What results say of the run beside its rows; known once `map` has given a row."""

    def map(self, config: Comparison, cells: Sequence[AnyCell]) -> Iterator[Row]:
        """Yields the row of every cell once, in the order in which they are done.

        A cell that fails for a reason the user can mend is a row with that reason; the others go on.

        Raises:
            PolypruneError: the model, a text or a plugin cannot be had; nothing has been run.
        """


class Local:
    """Runs cells in this process, one after another."""

    def __init__(self, registry: Registry, store: Store, reporter: Reporter) -> None:
        self.registry, self.store, self.reporter = registry, store, reporter
        self.record: dict[str, Any] = {}

    def map(self, config: Comparison, cells: Sequence[AnyCell]) -> Iterator[Row]:
        """Yields rows; cells that another process has come last, so that processes on one store share the work."""
        sources = check_plugins(config, self.registry)
        harness = open_harness(config, self.registry, self.reporter)
        self.record = run_record(harness, config)
        shared, decider = shared_identity(harness, config), Decider(harness)
        plugins = {cell: used_plugins(cell, sources) for cell in cells}
        blank = {
            cell: Row(cell_id(cell, config, shared | {"plugins": plugins[cell]}), cell, plugins=plugins[cell])
            for cell in cells
        }
        done: set[Cell] = set()
        with harness.compactor:
            for wait in (False, True):
                for cell in [cell for cell in cells if cell not in done]:
                    row = self._row(decider, blank[cell], wait)
                    if row:
                        done.add(cell)
                        yield row

    def _row(self, decider: Decider, blank: Row, wait: bool) -> Row | None:
        """Returns the cell's row, or None where another process has it and `wait` is False."""
        if row := finished(blank, self.store):
            return row
        with self.store.claimed(blank.id, wait) as mine:
            if not mine:
                return None
            return finished(blank, self.store) or run_cell(decider, blank, self.store, self.record)
