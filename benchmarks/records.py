"""The committed results, and the suites that they are results of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, SUITES = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "suites"


def read(name: str) -> dict[str, Any]:
    """Returns the results of that name."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return record
