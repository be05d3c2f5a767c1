"""A grid of criteria through one harness."""

from __future__ import annotations

from collections.abc import Callable

from polyprune_core.config.cell import Cell
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.cell_file import Details, path_of, read_details
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.executors import Executor, executor_for
from polyprune_core.runs.inputs import inputs
from polyprune_core.runs.preflight import settled
from polyprune_core.utils.files import write_json
from polyprune_core.utils.outputs import check_apart
from polyprune_core.utils.progress import Reporter


def compare(
    config: Comparison,
    registry: Registry,
    store: Store,
    reporter: Reporter,
    on_row: Callable[[Row], None] = lambda row: None,
    executor: Executor | None = None,
) -> Results:
    """Runs every cell that the store does not hold and returns them all; `on_row` sees each as it is done.

    `executor` runs them, unless given that which the request names. A cell that fails for a reason the user can mend,
    a broken file in the store among them, is a row with that reason; the others go on. What cannot be written is told,
    kept in the results and named in `store.unwritten`.
    """
    config = settled(config, registry)
    for place in (store.cells, store.summary):
        check_apart(place, inputs(config))
    grid, executor = cells(config), executor or executor_for(config, registry, store, reporter)
    done: dict[Cell, Row] = {}
    for row in executor.map(config, grid):
        done[row.cell] = row
        on_row(row)
    rows = [done[cell] for cell in grid]
    results = Results(**executor.record, rows=rows, details=_beside(rows, store, reporter))
    try:
        write_json(store.summary, results.to_json())
    except ConfigError as error:
        store.unwritten.append(store.summary)
        reporter.warn(str(error))
    return results


def _beside(rows: list[Row], store: Store, reporter: Reporter) -> dict[str, Details]:
    found = {}
    for row in rows:
        try:
            details = read_details(path_of(store.cells, row.id))
        except ConfigError as error:
            reporter.warn(str(error))
            continue
        if details is not None:
            found[row.id] = details
    return found
