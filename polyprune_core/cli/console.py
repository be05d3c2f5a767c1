"""The two streams: results on stdout, everything for people's eyes on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from polyprune_core.config.parsing import parse
from polyprune_core.errors import ConfigError
from polyprune_core.errors import plain as plain
from polyprune_core.utils.progress import Reporter, Task

if TYPE_CHECKING:
    from polyprune_core.plugins.registry import Registry

R = TypeVar("R", bound=BaseModel)


def stderr() -> Console:
    """A console on stderr."""
    return Console(stderr=True, highlight=False)


def show_problems(registry: Registry, console: Console, verbose: bool = False) -> None:
    """One line for each plugin that cannot be used; with `verbose` where its code failed besides."""
    for problem in registry.problems:
        if verbose:
            TerminalReporter(console, verbose=True).detail(problem.trace)
        console.print(f"[yellow]plugin not usable:[/] {escape(str(problem))}", soft_wrap=True)


def check_loudness(quiet: bool, verbose: bool) -> None:
    """Raises ConfigError where both are asked for."""
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose contradict each other; give one of them.")


def opened(
    asked: type[R], given: tuple[dict[str, Any], dict[str, Path]], quiet: bool, verbose: bool
) -> tuple[R, Registry, TerminalReporter]:
    """Returns what a command that loads a model is asked for, the plugins, and where its progress is drawn.

    `given` are the values that make it up, and the files that some of them are from.

    Raises:
        ConfigError: what is asked for contradicts itself, or names what there is not.
    """
    from polyprune_core.plugins.registry import load_registry

    check_loudness(quiet, verbose)
    console = stderr()
    request, registry = parse(asked, *given), load_registry()
    show_problems(registry, console, verbose)
    reporter = TerminalReporter(console, quiet, verbose)
    reporter.status("loading torch and transformers")
    return request, registry, reporter


class TerminalReporter(Reporter):
    """Draws progress on a terminal, none in a pipe; `quiet` leaves warnings only, `verbose` adds every step."""

    def __init__(self, console: Console, quiet: bool = False, verbose: bool = False) -> None:
        self.console, self.quiet, self.verbose = console, quiet, verbose

    def status(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            for line in text.splitlines():
                shown = "".join(c if c.isprintable() else " " for c in line)
                self.console.print(f"[dim]{escape(shown)}[/]", soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        start = time.monotonic()
        with self._drawn(label, total, about) as task:
            yield _Told(task, self, label, total) if self.verbose else task
        self.detail(f"{label}: {time.monotonic() - start:.1f} s")

    @contextmanager
    def _drawn(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        if self.quiet or not self.console.is_terminal:
            yield Task()
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield _Bar(progress, label, total)


class _Bar(Task):
    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self.progress, self.id = progress, progress.add_task(label, total=total or None, note="")

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        self.progress.update(self.id, completed=done, note=note)

    def resume(self, losses: Sequence[float]) -> None:
        self.progress.update(self.id, completed=len(losses))


class _Told(Task):
    """Says every step of a search besides."""

    def __init__(self, task: Task, reporter: Reporter, label: str, total: int) -> None:
        self.task, self.reporter, self.label, self.total = task, reporter, label, total

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        self.task.update(done, note, loss)
        if loss is not None:
            self.reporter.detail(f"{self.label}: step {done:g} of {self.total}, {note}")

    def resume(self, losses: Sequence[float]) -> None:
        self.task.resume(losses)
        self.reporter.detail(f"{self.label}: {len(losses)} of {self.total} steps were done before")
