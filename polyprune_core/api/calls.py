"""The commands as functions: the options of the command line are keywords, and each call returns an object.

No heavy package is imported before one of the functions is called.
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

from polyprune_core.config.parsing import parse
from polyprune_core.config.requests import EvaluateConfig, Recover
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.errors import ConfigError
from polyprune_core.utils.updating_line import UpdatingLine, warn_caller

if TYPE_CHECKING:
    from polyprune_core.api.comparison import ComparisonResults
    from polyprune_core.plugins.registry import Registry
    from polyprune_core.results.row import Row
    from polyprune_core.runs.evaluation_report import Findings
    from polyprune_core.runs.pruning_result import PruningResult
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
    """Compares pruning criteria on one model, as `polyprune compare` does, and returns a row for each of them.

    The rows are the dense model, then each metric alone, then each search.

    Args:
        output: the folder of the results store. Cells that are finished there are read and not run again. Without it,
            nothing is kept on disk.
        quiet: whether to show no progress.
        options: the options of `polyprune compare`, with underscores in place of dashes. An option that the command
            line takes several times, or as a list, takes one value or a list of values.

    Raises:
        PolypruneError: an option, a model, a text or a plugin cannot be used. If a single cell fails, no error is
            raised: its row says why, and a warning is shown.
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
    """Prunes one model, as `polyprune prune` does, and measures the pruned model in memory.

    Args:
        output: the new folder for the files of the exporter. The model is then read back from there and measured
            again. Without it, nothing is written, and `PruningResult.export` can write the model later.
        overwrite: whether to replace the folder if polyprune wrote what is there.
        quiet: whether to show no progress.
        options: the options of `polyprune prune`, with underscores in place of dashes.

    Raises:
        PolypruneError: an option, a model, a text, a plugin or the folder cannot be used.
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
    """Evaluates a model and the dense model that it was made from, as `polyprune evaluate` does.

    Args:
        target: the name or folder of a model, the folder of a pruned model, or a folder of masks.
        quiet: whether to show no progress.
        options: the options of `polyprune evaluate`, with underscores in place of dashes.

    Raises:
        PolypruneError: an option, a model, a text or a task cannot be used.
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
    """Trains a pruned model further, and the dense model in the same way, as `polyprune recover` does.

    Args:
        source: a folder of masks, a results store together with the option `cell`, the file of one cell, or the folder
            of a pruned model.
        output: the new folder for the files of the exporter. Without it, nothing is written, and training that is
            interrupted has to start again.
        overwrite: whether to replace the folder if polyprune wrote what is there.
        quiet: whether to show no progress.
        options: the options of `polyprune recover`, with underscores in place of dashes.

    Raises:
        PolypruneError: an option, a model, a text, a plugin or the folder cannot be used.
    """
    request = _parsed(Recover, options | {"source": source})
    with UpdatingLine(quiet) as line:
        registry = _usable()
        line.status(LOADING)

        from polyprune_core.runs.recover import recover as run

        return run(request, registry, Path(output).expanduser() if output else None, overwrite, line)


def load_results(*paths: str | Path, comparison: int | None = None) -> ComparisonResults:
    """Reads the results of one comparison from one or more results stores, or from their results.json.

    No model is loaded.

    Args:
        paths: folders of results stores, or their results.json files. Their cells are put together if they have the
            same model, texts and settings.
        comparison: the number of the comparison to read, counted from 0, if the paths hold several comparisons with
            different models, texts or settings.

    Raises:
        PolypruneError: a path is not a results store, or the paths hold several comparisons and `comparison` is None.
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
