"""A comparison's model and texts, opened in one process, in which its cells are run one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from polyprune_core.config.cell import AnyCell
from polyprune_core.config.execution import Machine
from polyprune_core.config.grid import cell_id
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.spread import Copy, MaskWorkers
from polyprune_core.models.placement import placed
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.cell_identity import used_plugins
from polyprune_core.runs.cell_row import finished, run_cell
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.engines import engine_of, placement_of, threads_of
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.opening import open_harness, run_record, shared_identity
from polyprune_core.runs.preflight import check_plugins
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.relay import Shown


class Workplace:
    """Runs cells while its `with` block runs.

    Attributes:
        record: what results say of the run beside its rows.
        blanks: the row that each cell is to fill.
    """

    def __init__(
        self, config: Comparison, cells: Sequence[AnyCell], registry: Registry, store: Store, reporter: Reporter
    ) -> None:
        """Raises PolypruneError: the model, a text or a plugin cannot be had; nothing has been run."""
        self.config, self._stack = config, ExitStack()
        sources = check_plugins(config, registry)
        with placed(placement_of(config)):
            harness = open_harness(config, registry, reporter)
        self.record: dict[str, Any] = run_record(harness, config)
        self.store, self.decider = store, Decider(harness)
        shared = shared_identity(harness, config)
        plugins = {cell: used_plugins(cell, sources) for cell in cells}
        self.blanks = {
            cell: Row(cell_id(cell, config, shared | {"plugins": plugins[cell]}), cell, plugins=plugins[cell])
            for cell in cells
        }

    def __enter__(self) -> Workplace:
        self._stack.enter_context(placed(placement_of(self.config)))
        self._stack.enter_context(self.decider.harness.compactor)
        self._stack.enter_context(spread_over(self.decider.harness, self.config))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def row(self, cell: AnyCell, wait: bool) -> Row | None:
        """Returns the cell's row, or None where another process has it and `wait` is False."""
        blank = self.blanks[cell]
        if row := finished(blank, self.store):
            return row
        with self.store.claimed(blank.id, wait) as mine:
            if not mine:
                return None
            return finished(blank, self.store) or run_cell(self.decider, blank, self.store, self.record)


@contextmanager
def spread_over(harness: Harness, asked: Machine) -> Iterator[None]:
    """Has the masks of searches run on copies of the model while the block runs, as many as are asked for."""
    if not asked.mask_workers:
        yield
        return
    settings = harness.settings
    copy = Copy.of(harness.loaded, settings.revision, settings.trust_remote_code, settings.device, threads_of(asked))
    with (
        Shown(harness.reporter) as shown,
        MaskWorkers(lambda: engine_of(asked, settings.device), copy, asked.mask_workers, shown) as harness.spread,
    ):
        try:
            yield
        finally:
            harness.spread = None
