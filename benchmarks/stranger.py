"""Measures how long a stranger waits on polyprune from a name to a row in the table, without opening a file of core.

In a folder of its own: `polyprune plugins new`, the formula typed into the one function of the new package,
`pip install` of that package, `polyprune plugins check`, and `polyprune compare --model tiny` with the new metric
beside the built-in ones. Writes the seconds of each step and their shares of the whole; thinking is not measured.
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
from polyprune_core.utils.files import write_json

NAME = "friday-metric"
TEMPLATE = "    return (weight.abs() * input_norm) ** power\n"
FORMULA = "    return weight.abs() * input_norm / (weight.abs().mean() + 1e-6)\n"
BASELINES = f"random,magnitude,wanda,{NAME}"
SMALL = ["--model", "tiny", "--limit", "20", "--calibration-samples", "16", "--format", "json", "-q"]


def main() -> None:
    """Runs the steps, prints the table and writes the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--output", type=Path, default=results / "stranger.json")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory(prefix="polyprune-stranger-") as folder:
        record = measured(Path(folder))
    write_json(output, record)
    print(json.dumps(record, indent=2))


def measured(folder: Path) -> dict[str, Any]:
    """Returns seconds and shares of the steps, what was edited, and the rows that came out."""
    package, site = folder / f"polyprune-{NAME}", folder / "site"
    module = package / f"polyprune_{NAME.replace('-', '_')}" / "__init__.py"
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(package)]
    polyprune = ["-c", "from polyprune_core.cli import main; main()"]
    seconds: dict[str, float] = {}

    def step(name: str, *command: str) -> str:
        start = time.perf_counter()
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{name}: {done.stdout}{done.stderr}")
        seconds[name] = time.perf_counter() - start
        return done.stdout

    step("new", *polyprune, "plugins", "new", NAME, "--kind", "initializer")
    source = module.read_text("utf-8")
    if TEMPLATE not in source:
        raise SystemExit(
            f"the new package does not hold {TEMPLATE.strip()!r}, which this benchmark puts a formula for."
        )
    module.write_text(source.replace(TEMPLATE, FORMULA), encoding="utf-8")
    step("install", *pip)
    step("check", *polyprune, "plugins", "check", NAME)
    rows = json.loads(step("compare", *polyprune, "compare", *SMALL, "--baselines", BASELINES))["rows"]
    whole = sum(seconds.values())
    return {
        "seconds": round(whole, 1),
        "steps": {name: {"seconds": round(s, 1), "share": round(s / whole, 3)} for name, s in seconds.items()},
        "files_edited": [module.relative_to(package).as_posix()],
        "lines_edited": 1,
        "rows": [
            {
                "criterion": row["initializer"] or "dense",
                "perplexity": row["perplexity"],
                "from": row["plugins"].get("initializer"),
            }
            for row in rows
        ],
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
