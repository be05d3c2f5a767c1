"""The command line that makes a number again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from polyprune_core.config.cell import NO_REPAIR
from polyprune_core.config.settings import Comparison
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary

ONE_SETTING = ("granularity", "scope", "scale", "repair")


def command(config: Mapping[str, Any]) -> str:
    """Returns `polyprune compare` with every setting that is not the default."""
    words = ["polyprune", "compare"]
    for name, field in Comparison.model_fields.items():
        value = config.get(name, field.default)
        if _plain(value) == _plain(field.default):
            continue
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, _text(value, "/" if name == "multiple_of" else ",")]
    return shlex.join(words)


def command_of(summary: Summary, config: Mapping[str, Any]) -> str:
    """Returns the command for the cells of one summary alone; those it is compared with come along."""
    row = summary.row
    lists: dict[str, Any] = {"baselines": (), "estimators": ()}
    lists |= {name: (getattr(row.cell, name),) for name in ONE_SETTING if getattr(row.cell, name)}
    if row.cell.is_reference:
        lists["repair"] = (NO_REPAIR,)
    else:
        lists["seeds"] = summary.seeds or config.get("seeds", (0,))
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
