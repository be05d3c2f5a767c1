"""The two streams: results on stdout, everything for people's eyes on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from polyprune_core.plugins.registry import Registry
from polyprune_core.printable import plain as plain
from polyprune_core.progress import Reporter, Task


def stderr() -> Console:
    """A console on stderr."""
    return Console(stderr=True, highlight=False)


def show_problems(registry: Registry, console: Console) -> None:
    """One line for each plugin that cannot be used."""
    for problem in registry.problems:
        console.print(f"[yellow]plugin not usable:[/] {escape(plain(str(problem)))}", soft_wrap=True)


class TerminalReporter(Reporter):
    """Draws progress on a terminal, none in a pipe; `quiet` leaves warnings only."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console, self.quiet = console, quiet

    def status(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"[dim]{escape(text)}[/]", soft_wrap=True)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True)

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Task]:
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
        self.progress, self.id = progress, progress.add_task(label, total=total, note="")

    def update(self, done: float, note: str = "") -> None:
        self.progress.update(self.id, completed=done, note=note)
