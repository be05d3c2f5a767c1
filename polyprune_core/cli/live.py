"""A grid as it runs, in a terminal: how far it is, the best rows, what runs now and the course of its loss."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyprune_core.cli.console import TerminalReporter
from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Cell
from polyprune_core.report import label, line, number
from polyprune_core.results.row import Row
from polyprune_core.utils.progress import Task

BLOCKS = " ▁▂▃▄▅▆▇█"
HEIGHT = 3
AXIS = 8
MOST_BEST = 4


def duration(seconds: float) -> str:
    """Returns a time in the two units that say most."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def curve(values: Sequence[float], width: int) -> list[str]:
    """Returns lines of at most `width` block characters, the highest first: a column is the mean of its share."""
    count = min(width, len(values))
    shares = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(share) / len(share) for share in shares]
    low, high = min(means), max(means)
    eighths = [1 + round((8 * HEIGHT - 1) * (mean - low) / ((high - low) or 1)) for mean in means]
    return ["".join(BLOCKS[min(8, max(0, e - 8 * row))] for e in eighths) for row in reversed(range(HEIGHT))]


@dataclass
class _Running(Task):
    """What runs now."""

    label: str
    total: int
    start: float
    about: object = None
    done: float = 0.0
    before: float = 0.0
    losses: list[float] = field(default_factory=list)
    pace: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=30))

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        self.done = done
        self.pace.append((time.monotonic(), done))
        if loss is not None:
            self.losses.append(loss)

    def resume(self, losses: Sequence[float]) -> None:
        self.done = self.before = len(losses)
        self.losses.extend(losses)

    def __str__(self) -> str:
        if self.total < 2 or not self.pace:
            return f"{self.label}: {duration(time.monotonic() - self.start)}"
        (begin, before), (end, after) = self.pace[0], self.pace[-1]
        left = (end - begin) / (after - before) * (self.total - after) if after > before else None
        return f"{self.label}: {after:g} of {self.total}" + ("" if left is None else f", {duration(left)} left")


class PlainView(TerminalReporter):
    """Prints a line for each finished cell; with `quiet` for failed ones only."""

    def __init__(
        self,
        console: Console,
        work: Mapping[Cell, float],
        varied: frozenset[str],
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        super().__init__(console, quiet, verbose)
        self.waiting, self.varied, self.total = dict(work), varied, len(work)

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def row(self, row: Row) -> None:
        """Takes in a finished cell."""
        self.waiting.pop(row.cell, None)
        if not self.quiet or row.status == "failed":
            done = f"[dim]{self.total - len(self.waiting)}/{self.total}[/]"
            self.console.print(f"{done} {line(row, self.varied)}", soft_wrap=not self.console.is_terminal)
        self.detail(f"cell {row.id}, {row.search_seconds:.1f} s to decide")


class GridView(PlainView):
    """Draws the state of a grid below those lines, while its `with` block runs.

    `work` is what each cell takes, in any unit; it is how time left is told. `varied` names the settings that tell
    rows apart; of what runs at the same time, the `shown` latest stretches of work are drawn.
    """

    def __init__(
        self,
        console: Console,
        work: Mapping[Cell, float],
        varied: frozenset[str],
        quiet: bool = False,
        verbose: bool = False,
        shown: int = 1,
    ) -> None:
        super().__init__(console, work, varied, quiet, verbose)
        self.shown = shown
        self.best: dict[BudgetSpec, Row] = {}
        self.failed = 0
        self.running: list[_Running] = []
        self.ended: list[_Running] = []
        self.worked = 0.0
        self.start: float | None = None
        self.idle = True
        self.live = Live(get_renderable=self.view, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> GridView:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def row(self, row: Row) -> None:
        """Takes in a finished cell; one that was read and not run says nothing about time."""
        before = sum(self.waiting.values())
        super().row(row)
        search = next((each for each in self._searches() if each.about in (None, row.cell)), None)
        part = 1 - search.before / search.total if search else float(not self.idle)
        self.worked += part * (before - sum(self.waiting.values()))
        self.ended = [each for each in self.ended if each is not search]
        self.idle = not self.running
        self.failed += row.status == "failed"
        target = row.cell.target
        if row.status == "ok" and target and (row.perplexity or math.inf) < self._best(target):
            self.best[target] = row

    @contextmanager
    def _drawn(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        if total:
            self.start = self.start or time.monotonic()
            self.idle = False
        running = _Running(label, total, time.monotonic(), about)
        self.running.append(running)
        try:
            yield running
        finally:
            self.running = [each for each in self.running if each is not running]
            self.ended += [running] if running.losses else []

    def view(self) -> Table:
        """Returns what is drawn, no wider than the terminal."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(style="dim", width=5)
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        grid.add_row("cells", self._cells())
        title = "best"
        for target, row in sorted(self.best.items(), key=lambda item: str(item[0]), reverse=True)[:MOST_BEST]:
            asked = str(target) if target.sparsity is None else f"{target.sparsity:g}"
            name = f"{escape(label(row, self.varied))}, seed {row.cell.seed}"
            grid.add_row(title, f"[cyan]{escape(asked)}[/]  {name}: perplexity {number(row.perplexity)}")
            title = ""
        title = "now"
        for running in self.running[-self.shown :]:
            grid.add_row(title, Text(str(running)))
            title = ""
        for search in self._searches()[:1]:
            self._add_curve(grid, search.losses)
        return grid

    def _cells(self) -> Table:
        done = self.total - len(self.waiting)
        text = f"{done} of {self.total}" + (f", [red]{self.failed} failed[/]" if self.failed else "")
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        left = self.seconds_left()
        bar.add_row(text, ProgressBar(self.total, done), "" if left is None else f"{duration(left)} left")
        return bar

    def seconds_left(self) -> float | None:
        """Returns the time that the cells waiting will take at the pace so far, or None before there is one."""
        next_cell = next(iter(self.waiting.values()), 0.0)
        worked, left = self.worked, sum(self.waiting.values())
        for search in self._searches():
            about = search.about
            cell = self.waiting.get(about, next_cell) if isinstance(about, Cell) else next_cell
            worked += cell * (search.done - search.before) / search.total
            left -= cell * search.done / search.total
        if not worked or self.start is None:
            return None
        return (time.monotonic() - self.start) / worked * left

    def _searches(self) -> list[_Running]:
        """Returns those that run, then those whose cell is not done yet."""
        return [*(task for task in self.running if task.losses), *self.ended]

    def _best(self, target: BudgetSpec) -> float:
        return self.best[target].perplexity or math.inf if target in self.best else math.inf

    def _add_curve(self, grid: Table, losses: Sequence[float]) -> None:
        lines = curve(losses, self.console.width - 5 - 1 - AXIS - 1)
        ends = [f"{max(losses):.3f}", *[""] * (HEIGHT - 2), f"{min(losses):.3f}"]
        for title, end, drawn in zip(("loss", "", ""), ends, lines, strict=True):
            grid.add_row(title, Text.assemble((f"{end:>{AXIS - 1}} ", "dim"), (drawn, "green")))
