"""What a row is called, and which settings tell the rows of a table apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from polyprune_core.config.cell import AUTO, Cell
from polyprune_core.errors import plain
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row

TELL_APART = ("granularity", "scope", "scale", "shapes")
POOLING = ("scope", "scale")


def label(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called; `varied` names the settings that tell rows of this table apart.

    A pooling that was chosen is always told, after `auto:` where others of the table were given.
    """
    name = "dense" if row.cell.kind == "dense" else row.cell.initializer or ""
    if row.cell.kind == "start":
        name += " → no search"
    if row.cell.kind == "search":
        name += f" → {row.cell.estimator}"
    notes = [note for key in TELL_APART if (note := _note(row, key, varied))]
    name += f" + {row.cell.repair}" if row.cell.repaired else ""
    name += " ∇" if row.backward_passes else ""
    return plain(f"{name} ({', '.join(notes)})" if notes else name)


def criterion(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called beside those of other budgets, where other poolings may have been chosen."""
    return label(dataclasses.replace(row, scope_chosen=None, scale_chosen=None), varied)


def _note(row: Row, key: str, varied: frozenset[str]) -> str:
    chosen = getattr(row, f"{key}_chosen", None)
    if chosen:
        return f"auto: {chosen}" if f"{AUTO} {key}" in varied else chosen
    asked = getattr(row.cell, key)
    return str(asked) if asked and key in varied else ""


def section(row: Row) -> str:
    """Returns what rows that can be held against each other share: a granularity and a budget."""
    return f"{row.cell.granularity}, {row.cell.asked}"


def varied(results: Results) -> frozenset[str]:
    """Returns the settings that rows of one table differ in."""
    return told_apart([row.cell for row in results.rows])


def told_apart(cells: Sequence[Cell]) -> frozenset[str]:
    """Returns the settings that the cells of one table differ in; "auto scope" where a metric's was given too."""
    found = {key for key in TELL_APART if len({getattr(cell, key) for cell in cells} - {None}) > 1}
    if len({cell.shapes for cell in cells if cell.kind != "dense"}) > 1:
        found.add("shapes")
    for key in POOLING:
        asked = {getattr(cell, key) for cell in cells if cell.kind == "baseline"}
        found |= {f"{AUTO} {key}"} if AUTO in asked and len(asked) > 1 else set()
    return frozenset(found)
