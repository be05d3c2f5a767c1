"""Who runs the cells of a comparison: this process, others on this machine, or a cluster; one contract for all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from polyprune_core.config.cell import AnyCell, Cell
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.workplace import Workplace
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.threads import computing_in


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
        with computing_in(config.threads, self.reporter.status):
            yield from self._rows(config, cells)

    def _rows(self, config: Comparison, cells: Sequence[AnyCell]) -> Iterator[Row]:
        place = Workplace(config, cells, self.registry, self.store, self.reporter)
        self.record = place.record
        done: set[Cell] = set()
        with place:
            for wait in (False, True):
                for cell in [cell for cell in cells if cell not in done]:
                    row = place.row(cell, wait)
                    if row:
                        done.add(cell)
                        yield row


def executor_for(config: Comparison, registry: Registry, store: Store, reporter: Reporter) -> Executor:
    """Returns what runs a comparison's cells where it was asked for."""
    if config.executor == "local" and (config.workers or 1) == 1:
        return Local(registry, store, reporter)
    from polyprune_core.runs.crewed import Crewed

    return Crewed(registry, store, reporter)
