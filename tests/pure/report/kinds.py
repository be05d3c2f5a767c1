"""One row of every kind of cell, told apart by what it measured, and the store that holds them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from stores import GROUPS, UNITS, WINDOWS, edited, fill, run

from polyprune_core.results.cell_file import Details
from polyprune_core.results.row import Row
from tests.rows import row

# Columns of a row that versions before budgets, repairs and tasks did not write.
LATER = ("budget", "repair", "budget_achieved", "tasks")


@dataclass(frozen=True)
class Kind:
    """A row and what lies beside it; how a report calls it, and what it says of what was asked and got."""

    called: str
    got: str
    row: Row
    details: Details | None

    @property
    def perplexity(self) -> str:
        """As a table has it."""
        return "failed" if self.row.perplexity is None else f"{self.row.perplexity:.2f}"

    def kept(self, kind: str) -> list[str]:
        """The units kept in each layer, as a table has them."""
        layers = self.details.kept().get(kind, ()) if self.details else ()
        return [str(kept) for _, kept, _ in layers]


METRIC: dict[str, Any] = {"kind": "baseline", "scale": "zscore"}
COLUMNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dense": ("dense", "", {"kind": "dense"}),
    "trained": ("dense + distil ∇", "", {"kind": "dense", "repair": "distil", "backward_passes": 2}),
    "metric": ("wanda", "0.2 → 0.201", METRIC | {"sparsity_achieved": 0.201}),
    "start": ("wanda → no search", "0.2 → 0.202", {"kind": "start", "sparsity_achieved": 0.202}),
    "search": ("wanda → rloo", "0.2 → 0.203", {"kind": "search", "estimator": "rloo", "sparsity_achieved": 0.203}),
    "repaired": ("wanda + bias", "0.2 → 0.204", METRIC | {"repair": "bias", "sparsity_achieved": 0.204}),
    "older": ("random", "0.2 → 0.205", METRIC | {"initializer": "random", "sparsity_achieved": 0.205}),
    "failed": ("magnitude", "0.2 → ?", METRIC | {"initializer": "magnitude", "status": "failed", "error": "it broke"}),
    "parameters": (
        "wanda",
        "parameters=900k → 897.4k",
        METRIC | {"budget": "parameters=900k", "budget_achieved": 897_432.0, "sparsity_achieved": 0.128},
    ),
    "bytes": (
        "wanda",
        "bytes=0.9 → 0.8997",
        METRIC | {"budget": "bytes=0.9", "budget_achieved": 0.8997, "sparsity_achieved": 0.125},
    ),
    "kv-cache": (
        "wanda",
        "kv-cache=0.7 → 0.6667",
        METRIC | {"budget": "kv-cache=0.7", "budget_achieved": 2 / 3, "sparsity_achieved": 0.09},
    ),
    "latency": (
        "wanda",
        "latency=0.8 → 0.793",
        METRIC | {"budget": "latency=0.8", "budget_achieved": 0.793, "sparsity_achieved": 0.25},
    ),
}
BUDGETS = ("parameters", "bytes", "kv-cache", "latency")


def kinds() -> dict[str, Kind]:
    """Returns a row of every kind, and beside each budget's a second one for it to agree with."""
    found = {}
    for name in (*COLUMNS, *(f"random-{budget}" for budget in BUDGETS)):
        called, got, columns = COLUMNS[name.removeprefix("random-")]
        if name.startswith("random-"):
            called, columns = "random", columns | {"initializer": "random"}
        found[name] = _kind(name, called, got, columns, len(found))
    return found


def _kind(name: str, called: str, got: str, columns: dict[str, Any], number: int) -> Kind:
    failed = columns.get("status") == "failed"
    rng = np.random.default_rng(number)
    window_nll = 3 + number / 10 + rng.normal(0, 0.01, WINDOWS).astype(np.float32)
    nll = None if failed else float(window_nll.mean())
    measured = {"nll": nll, "perplexity": nll and math.exp(nll), "forward_tokens": 0 if failed else 1001 + number}
    made = row(id=name, **measured, **columns)
    if failed:
        return Kind(called, got, made, None)
    if made.cell.kind == "dense":
        return Kind(called, got, made, Details(window_nll, run()))
    scores = rng.normal(size=UNITS).astype(np.float32)
    keep = scores >= np.sort(scores)[8 + number]
    return Kind(called, got, made, Details(window_nll, run(), GROUPS, keep, scores))


def fill_with_every_kind(folder: Path) -> Path:
    """Writes a store of them all, one of them as an older version wrote it."""
    every = [(each.row, each.details or Details(np.zeros(WINDOWS, np.float32))) for each in kinds().values()]
    fill(folder, every)
    (folder / "cells" / "failed.safetensors").unlink()
    record = json.loads((folder / "results.json").read_text("utf-8"))
    rows = [_as_it_was(row) if row["id"] == "older" else row for row in record["rows"]]
    edited(folder / "results.json", rows=rows)
    cell = folder / "cells" / "older.json"
    edited(cell, row=_as_it_was(json.loads(cell.read_text("utf-8"))["row"]))
    return folder


def _as_it_was(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in LATER}
