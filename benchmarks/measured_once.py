"""What a long benchmark found so far, kept in its output file: what was measured is not measured again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import write_atomically


class Kept:
    """What was found so far, in the output file: what was measured with the same settings is not measured again."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        old = json.loads(path.read_text("utf-8")) if path and path.is_file() else {}
        same = old.get("settings") == settings
        self.measured: dict[str, Any] = old["measured"] if same else {}
        self.results: dict[str, dict[str, Any]] = old["results"] if same else {}

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        """Returns what was measured under that name, by `work` where it was not yet."""
        if name not in self.measured:
            start = time.perf_counter()
            value = rounded(work())
            self.measured[name] = {"seconds": rounded(time.perf_counter() - start), "value": value}
            click.echo(f"{name}: {self.measured[name]['seconds']:.0f} s")
            self.write()
        return self.measured[name]["value"]

    def result(self, problem: str, name: str, value: Any) -> None:
        """Takes in a result."""
        self.results.setdefault(problem, {})[name] = rounded(value)
        self.write()

    def complete(self, problem: str) -> bool:
        """Whether everything is there that is asked of a problem."""
        return self.results.get(problem, {}).get("complete", False)

    def checkpoint(self, problem: str) -> Checkpoint | None:
        """Returns where the search of a problem is kept until the output is complete."""
        return Checkpoint(self.path.with_suffix(f".{problem}.search"), str(self.settings)) if self.path else None

    def write(self) -> None:
        """Writes the output file."""
        if self.path:
            record = {"environment": environment(), "settings": self.settings, "results": self.results}
            write_atomically(self.path, (json.dumps(record | {"measured": self.measured}, indent=1) + "\n").encode())


def rounded(value: Any) -> Any:
    """Returns JSON values with their numbers to seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value
