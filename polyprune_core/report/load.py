"""Results stores as comparisons: read with no model, merged where their numbers may stand in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from polyprune_core.config.cell import Cell
from polyprune_core.config.grid import SEARCH_ONLY
from polyprune_core.config.settings import Comparison, Settings, TaskSettings
from polyprune_core.errors import ConfigError, PolypruneError, brief, counted, plain
from polyprune_core.results.cell_file import Details, path_of, read_details
from polyprune_core.results.results import SCHEMA, Results
from polyprune_core.results.row import Row, row_from_json
from polyprune_core.results.schema import adapter
from polyprune_core.results.trace_file import read_trace
from polyprune_core.utils.files import read_json

RUN = ("polyprune", "environment", "config", "model", "texts")
# The lists of a comparison whose combinations are its cells.
SHARED = {*Settings.model_fields, *TaskSettings.model_fields}
GRID = tuple(name for name in Comparison.model_fields if name not in SHARED)
# Decided by the hashes of weights and texts, by the model's own dtype and device, or by `steps`.
NAMES = (
    *("model", "revision", "trust_remote_code", "dtype", "device"),
    *("calibration", "evaluation", "text_column", "forward_tokens"),
)


@dataclass
class MergedResults:
    """Cells that ran under the same conditions; `runs` are the commands' records, `folders` hold the cells."""

    run: dict[str, Any]
    rows: dict[str, Row] = field(default_factory=dict)
    details: dict[str, Details] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)

    @property
    def results(self) -> Results:
        """The comparison as results."""
        return Results(**{name: self.run[name] for name in RUN}, rows=list(self.rows.values()), details=self.details)

    def add(self, row: Row, details: Details | None, run: dict[str, Any], folder: Path | None) -> None:
        """Adds a cell, unless it is there and finished."""
        known = self.rows.get(row.id)
        if known is None or known.status != "ok":
            self.rows[row.id] = row
        if details is not None:
            self.details[row.id] = details
        if run not in self.runs:
            self.runs.append(run)
        if folder is not None and folder not in self.folders:
            self.folders.append(folder)


@dataclass(frozen=True)
class Loaded:
    """Comparisons whose numbers may not be mixed, and what a reader has to know about the stores."""

    comparisons: list[MergedResults]
    notes: list[str]


@dataclass(frozen=True)
class _Found:
    row: Row
    details: Details | None
    run: dict[str, Any]
    folder: Path | None


def load(paths: Sequence[Path]) -> Loaded:
    """Reads stores: folders that `polyprune compare` wrote, or their results.json.

    Cells of one model on the same texts under the same settings are one comparison, wherever they lie; a metric's
    cells, which no setting of a search decides, belong to every search they fit.

    Raises:
        ConfigError: a path is no store, or a file in it is not one of ours.
    """
    notes: list[str] = []
    found = [cell for path in paths for cell in _cells(path, notes)]
    comparisons: dict[str, MergedResults] = {}
    for cell in found:
        comparisons.setdefault(_conditions(cell.run), MergedResults(cell.run))
    for key, comparison in comparisons.items():
        for cell in found:
            searched = cell.row.cell.kind == "search"
            if _conditions(cell.run) == key or (not searched and _shared(cell.run) == _shared(comparison.run)):
                comparison.add(cell.row, cell.details, cell.run, cell.folder)
    kept = _without_repeats(list(comparisons.values()))
    for comparison in kept:
        notes += [*_one_a_seed(comparison), *_bare(comparison)]
    if not kept:
        raise ConfigError(f"no finished cell in {', '.join(map(str, paths))}; run polyprune compare first.")
    return Loaded(kept, notes)


def _without_repeats(comparisons: Sequence[MergedResults]) -> list[MergedResults]:
    """Leaves out a comparison all of whose rows another one has."""
    kept: list[MergedResults] = []
    for comparison in sorted(comparisons, key=lambda each: -len(each.rows)):
        like = [other for other in kept if _shared(other.run) == _shared(comparison.run)]
        if comparison.rows and not any(comparison.rows.keys() <= other.rows.keys() for other in like):
            kept.append(comparison)
    return sorted(kept, key=comparisons.index)


def _one_a_seed(comparison: MergedResults) -> list[str]:
    """Leaves one row a cell and seed, the first: two would count as two seeds."""
    seen: set[Cell] = set()
    twice = []
    for row in comparison.rows.values():
        if row.cell in seen:
            twice.append(row.id)
        seen.add(row.cell)
    for key in twice:
        del comparison.rows[key]
    if not twice:
        return []
    verb = "was" if len(twice) == 1 else "were"
    return [
        f"{counted(len(twice), 'cell')} {verb} measured again under other plugin versions; the first of each counts."
    ]


def _bare(comparison: MergedResults) -> list[str]:
    done = [row for row in comparison.rows.values() if row.status == "ok"]
    bare = sum(row.id not in comparison.details for row in done)
    if not bare:
        return []
    return [
        f"{bare} of {counted(len(done), 'cell')} hold{'s' * (bare == 1)} no window losses, scores or choices of units: "
        "where those are needed, evaluation noise, "
        "kept units and rank agreement are left out."
    ]


def _cells(path: Path, notes: list[str]) -> Iterator[_Found]:
    file = path / "results.json" if path.is_dir() else path
    folder = file.parent / "cells"
    if not file.is_file() and not folder.is_dir():
        raise ConfigError(
            f"{path} is neither a results store nor a results.json; give the folder that polyprune compare wrote."
        )
    known: set[str] = set()
    if file.is_file():
        run, rows = _read(file)
        for row in rows:
            known.add(row.id)
            yield _Found(row, _details(folder, row.id, notes), run, folder if folder.is_dir() else None)
    if not path.is_dir():
        return
    left_out = 0
    for cell in sorted(folder.glob("*.json")):
        if cell.stem in known:
            continue
        details = _details(folder, cell.stem, notes)
        if details is None or not _is_run(details.run):
            left_out += 1
            continue
        yield _Found(_read_cell(cell), details, _clean(details.run), folder)
    if left_out:
        notes.append(
            f"{counted(left_out, 'cell')} in {folder} left out for want of a record of what was run. "
            "Run their comparison again (finished cells are read) to see them."
        )


def _read(file: Path) -> tuple[dict[str, Any], list[Row]]:
    try:
        record = read_json(file)
        if not isinstance(record, dict) or "rows" not in record:
            raise ValueError("it has no rows")
        if record.get("schema") != SCHEMA:
            raise ValueError(f"it has schema {record.get('schema')!r}; this polyprune reads schema {SCHEMA}")
        rows = [_row(row) for row in record["rows"]]
        _check_run({name: record[name] for name in RUN})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, PolypruneError) as error:
        raise ConfigError(
            f"{file} does not hold results ({_reason(error)}); give a folder that polyprune compare wrote, or its "
            "results.json."
        ) from error
    return _clean({name: record[name] for name in RUN}), rows


def _read_cell(file: Path) -> Row:
    try:
        row = _row(read_json(file)["row"])
        if row.id != file.stem:
            raise ValueError(f"it holds cell {row.id}")
        return row
    except (OSError, ValueError, TypeError, KeyError, AttributeError, PolypruneError) as error:
        raise ConfigError(f"{file} is not a finished cell ({_reason(error)}). Delete it to go on without.") from error


def _row(record: dict[str, Any]) -> Row:
    row = row_from_json(_clean(record))
    if not re.fullmatch(r"[\w-]{1,64}", row.id):
        raise ValueError(f"{row.id!r} cannot be the id of a cell")
    return row


def _check_run(run: dict[str, Any]) -> None:
    """Raises ValueError where a run's record is not one that `polyprune compare` writes."""
    adapter().validate_python({**run, "schema": SCHEMA, "rows": [], "summary": []})
    Comparison.model_validate(_known(run["config"]))


def _known(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name in Comparison.model_fields}


def _details(folder: Path, key: str, notes: list[str]) -> Details | None:
    try:
        read_trace(folder, key)
    except ConfigError as error:
        notes.append(plain(str(error)))
    try:
        return read_details(path_of(folder, key))
    except ConfigError as error:
        notes.append(plain(str(error)))
        return None


def _is_run(run: dict[str, Any]) -> bool:
    try:
        _check_run(run)
    except (ValueError, TypeError, PolypruneError):
        return False
    return True


def _conditions(run: dict[str, Any]) -> str:
    """What two cells must share to stand in one table."""
    config = run["config"]
    settings = {name: value for name, value in config.items() if name not in (*GRID, *NAMES) and value is not None}
    if config.get("forward_tokens"):
        settings["steps"] = Comparison.model_validate(_known(config)).search_steps
    return json.dumps([run["polyprune"], _identity(run), settings], sort_keys=True)


def _shared(run: dict[str, Any]) -> str:
    """What cells without a search must share."""
    left_out = (*GRID, *NAMES, *SEARCH_ONLY)
    settings = {k: v for k, v in run["config"].items() if k not in left_out and v is not None}
    return json.dumps([run["polyprune"], _identity(run), settings], sort_keys=True)


def _identity(run: dict[str, Any]) -> list[Any]:
    model = run["model"]
    return [model.get("sha256"), model["parameters"], model["dtype"], model["device"], _nameless(run["texts"])]


def _nameless(texts: Any) -> Any:
    """Texts are known by their hashes."""
    if isinstance(texts, list):
        return [_nameless(each) for each in texts]
    return {k: _nameless(v) for k, v in texts.items() if k != "name"} if isinstance(texts, dict) else texts


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(str(key)): _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return plain(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}")
    return brief(error, 160)
