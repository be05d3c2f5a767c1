"""Measures how long a stranger waits on polyprune from a name to the first row, without opening a file of core.

For a metric as a function and as a class, an estimator, a policy, a repair and an exporter, each in a folder of its
own: `polyprune plugins new`, one line of the new package changed, `pip install` of that package, `polyprune plugins
check`, and the command on `tiny` that gives its first row. Writes the seconds of each step and their shares of the
whole; thinking is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import write_json

SMALL = ("--model", "tiny", "--limit", "20", "--calibration-samples", "16", "-q")
TABLE = ("--format", "json")
SEARCH = ("--baselines", "none", "--steps", "8")


@dataclass(frozen=True)
class Work:
    """What one stranger does: a kind of plugin, the line that they write in place of the example's, a command."""

    name: str
    kind: str
    example: str
    written: str
    command: tuple[str, ...]
    form: tuple[str, ...] = ()


WORKS = {
    "function metric": Work(
        "friday-metric",
        "initializer",
        "return (weight.abs() * input_norm) ** power",
        "return weight.abs() * input_norm / (weight.abs().mean() + 1e-6)",
        ("compare", *TABLE, "--baselines", "random,magnitude,wanda,friday-metric"),
    ),
    "class metric": Work(
        "friday-class",
        "initializer",
        "return variance**self.power * weight.square().sum(dim=0)",
        "return variance**self.power * weight.abs().sum(dim=0)",
        ("compare", *TABLE, "--baselines", "random,magnitude,wanda,friday-class"),
        ("--form", "class"),
    ),
    "estimator": Work(
        "friday-estimator",
        "estimator",
        "return (losses - others) @ policy.score_function(batch) / len(losses), None",
        "return (losses - losses.mean()) @ policy.score_function(batch) / (len(losses) - 1), None",
        ("compare", *TABLE, *SEARCH, "--estimators", "friday-estimator"),
    ),
    "policy": Work(
        "friday-policy",
        "policy",
        "temperature: float = 2.0",
        "temperature: float = 0.5",
        ("compare", *TABLE, *SEARCH, "--estimators", "rloo", "--policy", "friday-policy"),
    ),
    "repair": Work(
        "friday-repair",
        "repair",
        "factor = (energy.sum() / energy[stays].sum()).sqrt().clamp(max=self.most)",
        "factor = (energy.sum() / energy[stays].sum()).clamp(max=self.most)",
        ("compare", *TABLE, "--baselines", "wanda", "--repair", "none,friday-repair"),
    ),
    "exporter": Work(
        "friday-exporter",
        "exporter",
        "kept = {axis: keep.nonzero().flatten().tolist() for axis, keep in pruned.axis_keep().items()}",
        "kept = {axis: int(keep.sum()) for axis, keep in pruned.axis_keep().items()}",
        ("prune", "--exporter", "friday-exporter", "--output", "pruned"),
    ),
}


def main() -> None:
    """Runs the steps for each, prints and writes the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    results = Path(__file__).resolve().parent / "results"
    parser.add_argument("--output", type=Path, default=results / "stranger.json")
    output = parser.parse_args().output
    plugins = {}
    for what, work in WORKS.items():
        with tempfile.TemporaryDirectory(prefix="polyprune-stranger-") as folder:
            plugins[what] = measured(Path(folder), work)
        print(f"{what}: {plugins[what]['seconds']} s", file=sys.stderr)
    record = {"plugins": plugins, "environment": environment()}
    write_json(output, record)
    print(json.dumps(record, indent=2))


def measured(folder: Path, work: Work) -> dict[str, Any]:
    """Returns seconds and shares of the steps, what was edited, and the rows that came out."""
    package, site = folder / f"polyprune-{work.name}", folder / "site"
    module = package / f"polyprune_{work.name.replace('-', '_')}" / "__init__.py"
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
            raise SystemExit(f"{work.name}, {name}: {done.stdout}{done.stderr}")
        seconds[name] = time.perf_counter() - start
        return done.stdout

    step("new", *polyprune, "plugins", "new", work.name, "--kind", work.kind, *work.form)
    source = module.read_text("utf-8")
    if source.count(work.example) != 1:
        raise SystemExit(f"the new package does not hold {work.example!r} once, which is to be replaced.")
    module.write_text(source.replace(work.example, work.written), encoding="utf-8")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    step("install", *pip, str(package))
    step("check", *polyprune, "plugins", "check", work.name)
    shown = step(work.command[0], *polyprune, *work.command, *SMALL)
    told = json.loads(shown if work.kind != "exporter" else (folder / "pruned" / "polyprune.json").read_text("utf-8"))
    whole = sum(seconds.values())
    return {
        "seconds": round(whole, 1),
        "steps": {name: {"seconds": round(s, 1), "share": round(s / whole, 3)} for name, s in seconds.items()},
        "files_edited": [module.relative_to(package).as_posix()],
        "lines_edited": 1,
        "rows": _rows(told),
    }


def _rows(told: dict[str, Any]) -> list[dict[str, Any]]:
    if "reloaded" in told:
        return [{"format": told["report"]["format"], "perplexity": told["reloaded"]["perplexity"]}]
    names = ("initializer", "estimator", "repair")
    return [
        {
            "criterion": ", ".join(str(row[name]) for name in names if row.get(name)) or "dense",
            "perplexity": row["perplexity"],
            "plugins": row["plugins"],
        }
        for row in told["rows"]
    ]


if __name__ == "__main__":
    main()
