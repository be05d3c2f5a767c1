"""What the first table of a newcomer takes: the command with all its passes, and the quick look, one after the other.

    python benchmarks/first_table.py --output benchmarks/results/first_table.json

`--way quick` measures one of them anew, and leaves the other as it is in the file. The model is on the machine already.
Times are those of one machine, which others may use too, as `load` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from polyprune_core.utils.environment import environment

COMMAND = ["compare", "--estimators", "reinforce,rloo", "--format", "json", "--quiet"]
WAYS = {"quick": ["--preset", "quick"], "default": []}


def table(more: list[str], model: str | None) -> dict[str, Any]:
    """Runs the command in a process of its own; returns its time, its passes and what its rows say."""
    given = [*COMMAND, *more, *(["--model", model] if model else [])]
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-c", "from polyprune_core.cli import main; main()", *given, "-o", folder]
        load, start = os.getloadavg()[0], time.perf_counter()
        run = subprocess.run(program, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
    record = json.loads(run.stdout)
    rows = [row for row in record["rows"] if row["status"] == "ok"]
    evaluated = sum(row["eval_tokens"] for row in rows)
    return {
        "environment": environment(),
        "command": " ".join(["polyprune", *given]),
        "seconds": seconds,
        "load": load,
        "threads": record["environment"]["threads"],
        "tokens": sum(row["forward_tokens"] for row in rows) + evaluated,
        "perplexity": {
            " ".join(filter(None, (row["kind"], row["initializer"], row["estimator"]))): row["perplexity"]
            for row in rows
        },
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--way", choices=list(WAYS), action="append", help="what is measured; both unless given")
    parser.add_argument("--model", help="another than the one that is taken unless told")
    asked = parser.parse_args()
    record = json.loads(asked.output.read_text("utf-8")) if asked.way else {}
    record |= {way: table(WAYS[way], asked.model) for way in asked.way or WAYS}
    asked.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
