"""The commands as functions: the command line's options are their keywords, and what they return is an object.

Nothing heavy is imported before one of them is called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from polyprune_core.config.requests import EvaluateConfig, Recover
from polyprune_core.config.settings import Comparison, Pruning, parse
from polyprune_core.errors import ConfigError
from polyprune_core.utils.updating_line import UpdatingLine, warn_caller

if TYPE_CHECKING:
    from polyprune_core.api.comparison import ComparisonResults
    from polyprune_core.plugins.registry import Registry
    from polyprune_core.results.row import Row
    from polyprune_core.runs.evaluation_report import Findings
    from polyprune_core.runs.prune import PruningResult
    from polyprune_core.runs.recover import Recovered

F = TypeVar("F", bound=Callable[..., Any])
LOADING = "loading torch and transformers"


def _keywords_of(request: type[BaseModel]) -> Callable[[F], F]:
    """Gives a function's signature, as help and completion show it, the fields of a request and their defaults."""

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        named = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        asked = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default)
            for name, field in request.model_fields.items()
            if name not in own.parameters
        ]
        vars(function)["__signature__"] = own.replace(parameters=[*named, *asked])
        return function

    return decorate


@_keywords_of(Comparison)
def compare(*, output: str | Path | None = None, quiet: bool = False, **options: Any) -> ComparisonResults:
    """Compares pruning criteria on one model, as `polyprune compare` does: dense, metrics alone, then each search.

    Args:
        output: results store; cells finished there are read, not run again. Without one nothing is kept on disk.
        quiet: show no progress.
        options: those of `polyprune compare`, with underscores; of a list one value or several.

    Raises:
        PolypruneError: anything asked for cannot be had. A cell that fails alone is a row that says why, and a warning.
    """
    request = _parsed(Comparison, options)
    with ExitStack() as stack:
        line = stack.enter_context(UpdatingLine(quiet))

        from polyprune_core.config.grid import cells
        from polyprune_core.results.store import Store
        from polyprune_core.runs.grid import run_grid
        from polyprune_core.runs.loggers import check_loggers
        from polyprune_core.runs.preflight import check_plugins, settled

        check_loggers(request.report_to)
        if request.report_to and output is None:
            raise ConfigError("report_to keeps its files in the results store; give its folder as output.")
        registry = _usable()
        request = settled(request, registry)
        check_plugins(request, registry)
        folder = stack.enter_context(TemporaryDirectory()) if output is None else Path(output).expanduser()
        total = len(cells(request))
        done: list[Row] = []

        def on_row(row: Row) -> None:
            done.append(row)
            line.prefix = f"{len(done)} of {total} cells; "
            if row.status == "failed":
                line.warn(f"{row.cell.label}: failed: {row.error}")

        results = run_grid(request, registry, Store(Path(folder)), line, on_row)

    from polyprune_core.api.comparison import ComparisonResults

    return ComparisonResults.of(results)


@_keywords_of(Pruning)
def prune(
    *, output: str | Path | None = None, overwrite: bool = False, quiet: bool = False, **options: Any
) -> PruningResult:
    """Prunes one model, as `polyprune prune` does, and measures it in memory.

    Args:
        output: new folder for what `exporter` writes, which is read back and measured again. Without one nothing is
            written; the result can be exported later.
        overwrite: replace a folder that polyprune wrote.
        quiet: show no progress.
        options: those of `polyprune prune`, with underscores.

    Raises:
        PolypruneError: anything asked for cannot be had.
    """
    request = _parsed(Pruning, options)
    if output is None and "exporter" in request.model_fields_set:
        raise ConfigError(f"exporter {request.exporter} has nowhere to write; give output, or leave the exporter out.")
    with UpdatingLine(quiet) as line:
        registry = _usable()
        line.status(LOADING)

        from polyprune_core.runs.prune import prune as run

        return run(request, registry, Path(output).expanduser() if output else None, overwrite, line)


@_keywords_of(EvaluateConfig)
def evaluate(target: str | Path, *, quiet: bool = False, **options: Any) -> Findings:
    """Evaluates a model beside the model it was made from, as `polyprune evaluate` does.

    Args:
        target: a model's name or folder, a pruned model's folder, or a folder of masks.
        quiet: show no progress.
        options: those of `polyprune evaluate`, with underscores.

    Raises:
        PolypruneError: anything asked for cannot be had.
    """
    request = _parsed(EvaluateConfig, options | {"target": target})
    with UpdatingLine(quiet) as line:
        line.status(LOADING)

        from polyprune_core.runs.evaluate import examine

        return examine(request, line)


@_keywords_of(Recover)
def recover(
    source: str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Recovered:
    """Trains a pruned model further and the dense model alike beside it, as `polyprune recover` does.

    Args:
        source: a folder of masks, a results store with `cell`, a cell's file, or a pruned model's folder.
        output: new folder for what `exporter` writes. Without one nothing is written, nor kept while it trains.
        overwrite: replace a folder that polyprune wrote.
        quiet: show no progress.
        options: those of `polyprune recover`, with underscores.

    Raises:
        PolypruneError: anything asked for cannot be had.
    """
    request = _parsed(Recover, options | {"source": source})
    with UpdatingLine(quiet) as line:
        registry = _usable()
        line.status(LOADING)

        from polyprune_core.runs.recover import recover as run

        return run(request, registry, Path(output).expanduser() if output else None, overwrite, line)


def load_results(*paths: str | Path, comparison: int | None = None) -> ComparisonResults:
    """Reads results stores, or their results.json, as one comparison; no model is needed.

    Args:
        paths: stores of one model, text and setting, whose cells are put together.
        comparison: which one, counted from 0, where they hold several whose numbers may not be mixed.

    Raises:
        PolypruneError: a path is no store, or there are several comparisons and none was chosen.
    """
    from polyprune_core.api.comparison import ComparisonResults
    from polyprune_core.report.load import load
    from polyprune_core.report.sheet import heading

    if not paths:
        raise ConfigError("no results store given; name the folder that compare wrote, or its results.json.")
    loaded = load([Path(path).expanduser() for path in paths])
    for note in loaded.notes:
        warn_caller(note)
    found = [each.results for each in loaded.comparisons]
    if (comparison is None and len(found) > 1) or comparison not in (None, *range(len(found))):
        told = "; ".join(f"{index}: {heading(each)}, {len(each.rows)} rows" for index, each in enumerate(found))
        raise ConfigError(f"these stores hold {len(found)} comparisons; choose one with comparison=INDEX: {told}.")
    return ComparisonResults.of(found[comparison or 0])


def _parsed(request: type[BaseModel], options: dict[str, Any]) -> Any:
    """Returns the request; an option that is None is left to its default, as one that is not given."""
    given = {name: value for name, value in options.items() if value is not None}
    return parse(request, {n: os.fspath(value) if isinstance(value, Path) else value for n, value in given.items()})


def _usable() -> Registry:
    """Loads the plugins; those that cannot be used are warned of."""
    from polyprune_core.plugins.registry import load_registry

    registry = load_registry()
    for problem in registry.problems:
        warn_caller(f"plugin not usable: {problem}")
    return registry
