"""The steps of a search beside its cell: CELL.trace.jsonl, one step a line, each with the cell that it belongs to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, brief
from polyprune_core.utils.files import parse_json, write_atomically
from polyprune_core.utils.numbers import finite

if TYPE_CHECKING:
    from polyprune_core.search.trace import Trace


def write_trace(cells: Path, key: str, trace: Trace) -> None:
    """Writes the file whole or not at all."""
    steps = (json.dumps({"cell": key, **finite(dataclasses.asdict(record))}) for record in trace.steps)
    write_atomically(_path(cells, key), "\n".join(steps) + "\n")


def read_trace(cells: Path, key: str) -> list[dict[str, Any]]:
    """Returns the steps of a cell's search, none for a cell without such a file.

    Raises:
        ConfigError: the file is there but is not one of ours, or another cell's.
    """
    path = _path(cells, key)
    try:
        steps = [parse_json(line) for line in path.read_text("utf-8").splitlines()]
        others = [step["cell"] for step in steps if step.get("cell", key) != key]
        if others:
            raise ValueError(f"they are those of cell {others[0]}")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not hold the steps of a search ({brief(error, 160)}). Delete it to do without."
        ) from error
    return steps


def _path(cells: Path, key: str) -> Path:
    return cells / f"{key}.trace.jsonl"
