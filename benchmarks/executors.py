"""What workers cost and give: a grid on two of them beside one process, a search over two copies, a call's overhead.

    python benchmarks/executors.py --output benchmarks/results/executors.json

Times are those of one machine while others use it too, as `load` says; what is to be read of them are the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from polyprune_core.evaluation.losses import Objective
from polyprune_core.evaluation.spread import Copy, MaskWorkers
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.utils.crew import Call, Crew, Engine
from polyprune_core.utils.environment import environment
from polyprune_core.utils.processes import Processes
from polyprune_core.utils.ray_workers import RayWorkers, Share

GRID = ["compare", "-m", "tiny", "--estimators", "rloo,reinforce,antithetic", "--baselines", "random,magnitude,wanda"]
GRID += ["--steps", "40", "--limit", "16", "--format", "json", "--threads", "1", "--quiet"]
WAYS: dict[str, list[str]] = {
    "one process": [],
    "2 processes": ["--workers", "2"],
    "2 workers of Ray": ["--executor", "ray", "--workers", "2"],
}
MEASURED = ("seconds", "peak_memory", "commit")
ENGINES: dict[str, Callable[[], Engine]] = {"processes": Processes, "Ray": lambda: RayWorkers(share=Share(cpus=0.5))}
NAMES = {"processes": "polyprune_core.utils.worker", "Ray": "ray::Member"}


class Nothing:
    """Answers at once."""

    def answer(self, content: bytes) -> int:
        """Returns how much it was given."""
        return len(content)


class Build:
    """Makes it."""

    def __call__(self, tell: Any) -> Nothing:
        return Nothing()


def unmeasured(value: Any) -> Any:
    """Returns a record without times, memory, and the state of the sources, which other work may change."""
    if isinstance(value, dict):
        return {key: unmeasured(each) for key, each in value.items() if not any(part in key for part in MEASURED)}
    return [unmeasured(each) for each in value] if isinstance(value, list) else value


def grids() -> dict[str, Any]:
    """Runs one grid of eight cells in every way."""
    found: dict[str, Any] = {}
    first: Any = None
    for way, more in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", "from polyprune_core.cli import main; main()", *GRID, *more, "-o", folder]
            load, start = os.getloadavg()[0], time.perf_counter()
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
        record = unmeasured(json.loads(run.stdout))
        first = first or record
        found[way] = {"seconds": seconds, "load": load, "cells": len(record["rows"]), "same_json": record == first}
    alone = found["one process"]["seconds"]
    return {way: each | {"ratio": each["seconds"] / alone} for way, each in found.items()}


def search(model: str, masks: int, steps: int, kill: bool) -> dict[str, Any]:
    """Runs steps of masks here and on two copies, of which one may be killed; says what a mask takes and ships."""
    loaded = load_model(model, device="cpu")
    layout, registry = describe(loaded.model), load_registry()
    groups = [group for name in ("head", "channel") for group in registry.build("granularity", name).groups(layout)]
    space, rng = MaskSpace(layout, groups, "head+channel"), torch.Generator().manual_seed(0)
    drawn = [torch.rand(masks, len(space), generator=rng) > 0.3 for _ in range(steps)]
    text = torch.randint(0, 500, (2, 128), generator=rng)
    found: dict[str, Any] = {"model": model, "units": len(space), "masks_per_step": masks, "steps": steps}
    with Compactor(loaded.model, layout) as compactor:
        here = Objective(compactor, space)
        here.losses(drawn[0][:1], text)
        start = time.perf_counter()
        expected = [here.losses(each, text) for each in drawn]
        found["seconds_a_mask"] = (time.perf_counter() - start) / (masks * steps)
        for name, engine in ENGINES.items():
            with MaskWorkers(engine, Copy.of(loaded, None, False, "cpu", 1), 2) as workers:
                there = Objective(compactor, space, spread=workers)
                begun = time.perf_counter()
                there.losses(drawn[0][:2], text)
                started = time.perf_counter() - begun
                begun, got = time.perf_counter(), []
                for step, each in enumerate(drawn):
                    if kill and step == steps // 2:
                        threading.Timer(0.01, _kill, (NAMES[name],)).start()
                    got.append(there.losses(each, text))
                seconds = (time.perf_counter() - begun) / (masks * steps)
                found[name] = {
                    "seconds_to_start": started,
                    "seconds_a_mask": seconds,
                    "ratio": seconds / found["seconds_a_mask"],
                    "same_losses": all(map(torch.equal, got, expected)),
                    "lost": list(workers.lost),
                }
    found["bytes_a_mask"] = len(pickle.dumps((tuple(groups), drawn[0][0].numpy().tobytes()[: len(space) // 8 + 1])))
    return found


def _kill(name: str) -> None:
    found = [each for each in psutil.Process().children(recursive=True) if name in " ".join(each.cmdline())]
    found[0].kill()


def overhead(calls: int = 400) -> dict[str, float]:
    """Returns the seconds of a call that does nothing with as much as a mask of SmolLM2 is."""
    import executors  # by its name, by which workers know it too

    found = {}
    for name, engine in ENGINES.items():
        with Crew(engine(), executors.Build(), 1) as crew:
            list(crew.results([Call("answer", (b"",))] * 20))
            start = time.perf_counter()
            list(crew.results([Call("answer", (bytes(8000),))] * calls))
            found[name] = (time.perf_counter() - start) / calls
    return found


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--large", default="smollm2-135m")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"environment": environment()}
    if asked.output.exists():  # what was measured before is kept
        record = json.loads(asked.output.read_text("utf-8"))
    parts: dict[str, Callable[[], Any]] = {
        "calls": overhead,
        "search": lambda: search("tiny", 8, 10, kill=False),
        "killed": lambda: search("tiny", 8, 10, kill=True),
        "large": lambda: search(asked.large, 4, 1, kill=False),
        "grid": grids,
    }
    for name, measure in parts.items():
        if name not in record:
            record[name] = measure()
            asked.output.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    mask = record["large"]["seconds_a_mask"]
    record["overhead_of_a_mask"] = {name: seconds / mask for name, seconds in record["calls"].items()}
    asked.output.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
