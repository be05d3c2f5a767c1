"""The small grids that the tests of `polyprune compare` run, and how they look at what is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commandline import Run, polyprune

SMALL = ("-m", "tiny", "--limit", "4", "--seq-len", "32", "--eval-seq-len", "32")
SMALL += ("--calibration-samples", "4", "--batch-size", "2", "--steps", "2")
SMALL += (
    "--calibration",
    "learn.txt",
    "--evaluation",
    "test.txt",
    "--policy",
    "probabilities",
    "--masks-per-step",
    "2",
)
ESTIMATORS = ("reinforce", "rloo", "antithetic", "reinforce-released")
GRID = ("compare", *SMALL, "--estimators", ",".join(ESTIMATORS))
# One baseline and one search: enough where the number of rows does not matter.
FEW = ("compare", *SMALL, "--baselines", "random", "--estimators", "rloo")
# The same without the choice of a pooling.
FEWER = (*FEW, "--scope", "kind", "--scale", "raw")
NOT_THE_RESULT = {"search_seconds", "peak_memory_mb"}


def grid(store: Path, *more: object, base: tuple[str, ...] = GRID) -> Run:
    return polyprune(*base, "-o", store, "--format", "json", *more)


def results_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in NOT_THE_RESULT} for row in rows]


def cell_files(store: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (store / "cells").glob("*.json")}
