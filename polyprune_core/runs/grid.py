"""A whole grid, with the loggers that it reports to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import Registry
from polyprune_core.runs.loggers import Tracking
from polyprune_core.utils.progress import Reporter

if TYPE_CHECKING:
    from polyprune_core.results.results import Results
    from polyprune_core.results.row import Row
    from polyprune_core.results.store import Store


def run_grid(
    request: Comparison, registry: Registry, store: Store, reporter: Reporter, on_row: Callable[[Row], None]
) -> Results:
    """Runs the cells that the store does not hold and returns all; `on_row` sees each as it is done.

    Raises:
        PolypruneError: anything asked for cannot be had.
    """
    with Tracking(request, registry, store.folder, reporter) as tracking:
        reporter.status("loading torch and transformers")

        from polyprune_core.runs.compare import compare

        def done(row: Row) -> None:
            on_row(row)
            tracking.row(row)

        return compare(request, registry, store, tracking, done)
