"""Rows for tests, from the columns of their JSON form; a pruned cell needs no more than its kind."""

from __future__ import annotations

from typing import Any

from polyprune_core.config.cell import COORDINATES, AnyCell, cell_from_json
from polyprune_core.results.row import Row

PRUNED = {"granularity": "head+channel", "initializer": "wanda", "scope": "kind", "seed": 0}


def cell(**columns: Any) -> AnyCell:
    """Returns the cell with these columns, at sparsity 0.2 unless they ask for something."""
    if columns["kind"] != "dense":
        asked = {} if {"sparsity", "budget"} & columns.keys() else {"sparsity": 0.2}
        columns = PRUNED | asked | columns
    return cell_from_json(columns)


def row(**columns: Any) -> Row:
    """Returns the row with these columns."""
    coordinates = {name: value for name, value in columns.items() if name in COORDINATES}
    measured = {name: value for name, value in columns.items() if name not in COORDINATES}
    return Row(cell=cell(**coordinates), **measured)


def changed(one: Row, **columns: Any) -> Row:
    """Returns the row with some of its columns changed; a kind brings the columns that it has."""
    record = one.to_json() | ({"sparsity": None} if "budget" in columns else {}) | columns
    if columns.get("kind") == "start":
        record |= {"estimator": None, "scale": None}
    return row(**{name: value for name, value in record.items() if value is not None})
