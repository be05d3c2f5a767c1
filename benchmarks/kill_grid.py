"""A grid that is killed again and again, compared with the same grid left alone, in every number.

python benchmarks/kill_grid.py --output benchmarks/results/kill_grid.json --keep grid
python benchmarks/kill_grid.py --publish grid
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from polyprune_core.results.cell_file import read_details
from polyprune_core.utils.environment import environment

# Between two checkpoints: shorter than what users get, so that searches of a second are killed in the middle of theirs.
SECONDS_BETWEEN = 0.1
PROGRAM = f"""
from polyprune_core.search import checkpoint as resume
from polyprune_core.cli import main
resume.SECONDS_BETWEEN, resume.SHARE_OF_TIME = {SECONDS_BETWEEN}, 1.0
main()
"""
ROOT = Path(__file__).resolve().parent.parent
SUITE, RESULTS = (ROOT / "benchmarks" / name for name in ("suites/grid.toml", "results/grid.json"))
PAGE, REPORT = (ROOT / "docs" / name for name in ("howto/report.md", "_static/report.html"))
# A table of the page, and the block above it with the command that prints it.
TABLE = re.compile(r"(```bash\n(polyprune report [^`]*)```\n\n<!--- table -->\n).*?(?=\n<!--- end of table -->)", re.S)
FAULTS = ("different_numbers", "different_traces", "different_decisions", "files_left_over")
NOT_THE_RESULT = ("search_seconds", "peak_memory_mb")
STEP = re.compile(r": step (\d+) of \d+, ")
# What a run tells of work, not of rows that it reads: a step of a search, an evaluation.
WORK = re.compile(r": step \d+ of \d+, |^perplexity of ")


class Grid:
    """One request, run by the command line in a process of its own."""

    def __init__(self, seeds: int, steps: int) -> None:
        self.seeds, self.steps = seeds, steps

    def start(self, store: Path) -> subprocess.Popen[str]:
        """Starts or resumes the grid in `store`."""
        asked = {
            "config": SUITE,
            "seeds": ",".join(map(str, range(self.seeds))),
            "steps": self.steps,
            "output": store,
            "format": "json",
        }
        options = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-c", PROGRAM, "compare", "--verbose", *options]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def run(self, store: Path) -> tuple[list[dict[str, Any]], int]:
        """Returns the rows of a run that nobody kills, and how many pieces of work it told."""
        process = self.start(store)
        watch = Watch(process)
        out, _ = process.communicate()
        watch.thread.join()
        if process.returncode:
            raise click.ClickException("\n".join(watch.lines[-3:]))
        return json.loads(out)["rows"], watch.work


class Watch:
    """Reads what a run tells, and counts its pieces of work."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.lines: list[str] = []
        self.work = 0
        self.source, process.stderr = process.stderr, None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.source or ():
            self.lines.append(line.rstrip("\n"))
            self.work += bool(WORK.search(line))


def kill(grid: Grid, store: Path, work: int, seconds: float) -> dict[str, Any]:
    """Kills a run `seconds` after it told that many pieces of work and returns where that hit."""
    process = grid.start(store)
    watch = Watch(process)
    while watch.work < work and process.poll() is None:
        time.sleep(0.001)
    time.sleep(seconds)
    if process.poll() is not None:
        raise click.ClickException("the grid was finished before it could be killed; give more --steps.")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    watch.thread.join()
    within = STEP.search(watch.lines[-1])
    cells = store / "cells"
    return {
        "after_work": work,
        "and_seconds": round(seconds, 4),
        "cells_finished": sum(not path.name.startswith(".") for path in cells.glob("*.json")),
        "after_search_step": int(within[1]) if within else None,
        "checkpoint": any(cells.glob("*.search.safetensors")),
        "resumed": sum(line.startswith("the search goes on from ") for line in watch.lines),
    }


def traces(store: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns every step of every search, without its time, by file."""
    found = {}
    for path in store.glob("cells/*.trace.jsonl"):
        steps = map(json.loads, path.read_text("utf-8").splitlines())
        found[path.name] = [{name: value for name, value in step.items() if name != "seconds"} for step in steps]
    return found


def decisions(store: Path) -> dict[str, list[Any]]:
    """Returns the scores, kept units and window losses of every cell, by file."""
    found = {path.name: read_details(path) for path in store.glob("cells/*.safetensors")}
    arrays = {name: (each.window_nll, each.scores, each.keep) for name, each in found.items() if each}
    return {name: [None if array is None else array.tolist() for array in each] for name, each in arrays.items()}


def left_over(cells: Path) -> list[str]:
    """Returns the files that belong to no finished cell."""
    rows = {path.stem for path in cells.glob("*.json")}
    kinds = (".json", ".safetensors", ".trace.jsonl", ".lock")
    known = {f"{row}{kind}" for row in rows for kind in kinds}
    return sorted(path.name for path in cells.iterdir() if path.name not in known)


def differences(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    """Returns what rows differ in besides time and memory."""
    if [row["id"] for row in one] != [row["id"] for row in other]:
        return ["the cells"]
    return [
        f"{a['id']} {name}: {a[name]!r}, {b[name]!r}"
        for a, b in zip(one, other, strict=True)
        for name in a
        if name not in NOT_THE_RESULT and a[name] != b[name]
    ]


def measure(folder: Path, seeds: int, steps: int, kills: int, seed: int) -> dict[str, Any]:
    """Runs the grid once unbroken and once with `kills` kills, and returns how the two compare."""
    rng = random.Random(seed)
    grid = Grid(seeds, steps)
    unbroken, work = grid.run(folder / "unbroken")
    click.echo(f"{len(unbroken)} cells, {work} search steps and evaluations", err=True)
    moments = sorted(rng.sample(range(int(0.9 * work)), kills))
    killed = []
    for before, moment in pairwise([0, *moments]):
        killed.append(kill(grid, folder / "killed", moment - before, rng.uniform(0, 0.1)))
        click.echo(killed[-1], err=True)
    resumed, _ = grid.run(folder / "killed")
    return {
        "cells": len(unbroken),
        "search_steps": steps,
        "seconds_between_checkpoints": SECONDS_BETWEEN,
        "seed": seed,
        "kills": killed,
        "kills_within_a_search": sum(one["after_search_step"] is not None for one in killed),
        "searches_resumed_from_a_checkpoint": sum(one["resumed"] for one in killed),
        "different_numbers": differences(unbroken, resumed),
        "different_traces": traces(folder / "unbroken") != traces(folder / "killed"),
        "different_decisions": decisions(folder / "unbroken") != decisions(folder / "killed"),
        "files_left_over": left_over(folder / "killed" / "cells"),
    }


def report(*words: str | Path) -> str:
    """Returns what `polyprune report` prints in the folder of the repository."""
    command = [sys.executable, "-c", "from polyprune_core.cli import main; main()", "report", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout


def tables(page: str) -> str:
    """Returns a page with the tables made anew, each by the command above it."""
    return TABLE.sub(lambda found: found[1] + report(*shlex.split(found[2].replace("\\\n", ""))[2:]).strip(), page)


def publish(store: Path) -> None:
    """Writes the grid's results, its report, and the tables of the page that shows them."""
    shutil.copyfile(store / "results.json", RESULTS)
    report(store, "--format", "html", "--output", REPORT)
    PAGE.write_text(tables(PAGE.read_text("utf-8")), "utf-8")


@click.command()
@click.option("--seeds", default=4, show_default=True)
@click.option("--steps", default=30, show_default=True)
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder for the store that was killed and resumed.")
@click.option("--publish", "store", type=click.Path(path_type=Path), help="Run nothing: make docs/ from such a store.")
def main(
    seeds: int, steps: int, kills: int, seed: int, output: Path | None, keep: Path | None, store: Path | None
) -> None:
    """Kill a grid at random moments with SIGKILL, resume it, and compare it with the unbroken run."""
    if store:
        publish(store.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        record = {"environment": environment(), **measure(Path(folder), seeds, steps, kills, seed)}
        if keep:
            shutil.copytree(Path(folder) / "killed", keep)
    same = not any(record[fault] for fault in FAULTS)
    click.echo(
        f"{kills} kills, {record['kills_within_a_search']} within a search: {'the same' if same else 'DIFFERENT'}"
    )
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not same)


if __name__ == "__main__":
    main()
