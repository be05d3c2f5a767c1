"""Draws the README's picture of a terminal from committed results: python benchmarks/picture.py."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console
from rich.text import Text

from polyprune_core import report
from polyprune_core.results.results import Results

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "benchmarks" / "results" / "grid.json"
PICTURE = ROOT / "docs" / "_static" / "terminal.svg"
WIDTH = 132
COMMAND = "polyprune report benchmarks/results/grid.json --filter sparsity=0.5"


def drawn() -> str:
    """Returns what the command prints, as a picture."""
    results = Results.from_json(json.loads(SOURCE.read_text("utf-8")))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(Text.assemble(("$ ", "green"), COMMAND))
    console.print(report.table(results, WIDTH, report.Arrangement(keep={"sparsity": ("0.5",)})))
    return console.export_svg(title="polyprune", unique_id="polyprune").rstrip() + "\n"


if __name__ == "__main__":
    PICTURE.write_text(drawn(), "utf-8")
