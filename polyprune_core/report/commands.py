"""The command line that makes a number again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from polyprune_core.config.cell import NO_REPAIR
from polyprune_core.config.settings import Comparison
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.pruning.provenance import without_folders
from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary

ONE_SETTING = ("granularity", "scope", "scale", "repair")


def command(config: Mapping[str, Any], verb: str = "compare", asked: type[BaseModel] = Comparison) -> str:
    """Returns `polyprune compare`, or another command that is asked such things, with all that is not the default."""
    words = ["polyprune", verb]
    for name, field in asked.model_fields.items():
        value = config.get(name, field.default)
        if _plain(value) == _plain(field.default):
            continue
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, _text(value, "/" if name == "multiple_of" else ",")]
    return shlex.join(words)


def portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings with only the last part of each absolute path: for whoever has the files at hand."""
    told = {name: config[name] for name in ("model", "calibration", "evaluation", "from_masks") if config.get(name)}
    return {
        **config,
        **{
            name: without_folders(value) if isinstance(value, str) else list(map(without_folders, value))
            for name, value in told.items()
        },
    }


def command_of(summary: Summary, config: Mapping[str, Any]) -> str:
    """Returns the command for the cells of one summary alone; those it is compared with come along."""
    return command_of_row(summary.row, config, summary.seeds)


def command_of_row(row: Row, config: Mapping[str, Any], seeds: Sequence[int] = ()) -> str:
    """Returns the command for the cell of one row, or for those that differ in their seeds only."""
    lists: dict[str, Any] = {"baselines": (), "estimators": ()}
    lists |= {name: (getattr(row.cell, name),) for name in ONE_SETTING if getattr(row.cell, name)}
    if row.cell.is_reference:
        lists["repair"] = (NO_REPAIR,)
    else:
        lists["seeds"] = seeds or config.get("seeds", (0,))
    if row.cell.kind != "dense":
        shapes = ShapesSpec.parse(row.cell.shapes)
        lists |= {"multiple_of": shapes.multiples or (), "target": shapes.target or ()}
        lists |= {"sparsity": (), "budget": (), **_asked(row)}
        lists |= _plugins(row, config)
    return command({**config, **lists})


def _asked(row: Row) -> dict[str, Any]:
    asked = {"sparsity": row.cell.sparsity, "budget": row.cell.budget}
    return {name: (value,) for name, value in asked.items() if value is not None}


def _plugins(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    if row.cell.kind == "baseline":
        return {"baselines": (row.cell.initializer,)}
    searches: Sequence[str] = (row.cell.estimator,) if row.cell.estimator else config.get("estimators", ())[:1]
    return {"initializers": (row.cell.initializer,), "estimators": searches}


def _plain(value: Any) -> Any:
    """A list as a list; one of one as its item, which is how some of them are written."""
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 1 else list(value)


def _text(value: Any, between: str) -> str:
    if isinstance(value, (list, tuple)):
        return between.join(map(str, value)) or "none"
    return str(value)
