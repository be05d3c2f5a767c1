"""A grid in experiment loggers, through accelerate's trackers: one run a cell, the course of its search and its row."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.config.cell import NO_REPAIR, Cell, Search
from polyprune_core.config.grid import NAMES, cell_id
from polyprune_core.config.settings import Comparison, Settings, TaskSettings
from polyprune_core.errors import ConfigError, plain
from polyprune_core.plugins.contracts import extra_passes
from polyprune_core.plugins.registry import Registry
from polyprune_core.utils.progress import Reporter, Task

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from polyprune_core.results.row import Row

PROJECT = "polyprune"
# The modules of which one makes a logger usable, the first by the name of its package.
LIBRARIES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def check_loggers(names: Sequence[str]) -> None:
    """Raises ConfigError unless the libraries of these loggers are installed."""
    missing = [LIBRARIES[name][0] for name in names if not any(map(find_spec, LIBRARIES[name]))]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ConfigError(
            f"--report-to needs {' and '.join(missing)}, which {verb} not installed: pip install {' '.join(missing)}."
        )


class Tracking(Reporter):
    """Passes progress on to `reporter`, and to the loggers of `config.report_to` what a grid measures.

    A cell is a run, by a name that the same request gives again: of a search `search/loss` (nats per token) and
    `search/forward_tokens` at every step, of every finished cell the numbers of its row under `result/`. A cell read
    from the store has its row logged and no course. Files go below `folder`, for tensorboard in `folder`/tensorboard.
    A logger that fails is warned of and left alone from then on. Used as a context, it closes what was left open. Where
    cells run at the same time, the course of a search is logged when its cell is done.
    """

    def __init__(self, config: Comparison, registry: Registry, folder: Path, reporter: Reporter) -> None:
        self.config, self.registry, self.folder, self.reporter = config, registry, folder, reporter
        self.names: list[str] = list(config.report_to)
        self.trackers: dict[str, GeneralTracker] = {}
        self.at_once = config.executor != "local" or (config.workers or 1) > 1
        self.courses: dict[Cell, dict[float, float]] = {}

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def status(self, text: str) -> None:
        self.reporter.status(text)

    def warn(self, text: str) -> None:
        self.reporter.warn(text)

    def detail(self, text: str) -> None:
        self.reporter.detail(text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        with self.reporter.task(label, total, about) as task:
            yield _Followed(task, partial(self._point, about)) if isinstance(about, Search) else task

    def row(self, row: Row) -> None:
        """Logs a finished cell, or why it failed, and ends its run."""
        cell = row.cell
        self._open(cell)
        for step, loss in sorted(self.courses.pop(cell, {}).items()):
            self._log_point(cell, step, loss)
        values = {"error": plain(row.error or "")} if row.status == "failed" else numbers(row)
        self._log({f"result/{name}": value for name, value in values.items()}, self._costs(cell)[0])
        self._close()

    def _point(self, cell: Search, step: float, loss: float) -> None:
        if self.at_once:
            self.courses.setdefault(cell, {})[step] = loss
            return
        self._open(cell)
        self._log_point(cell, step, loss)

    def _log_point(self, cell: Cell, step: float, loss: float) -> None:
        tokens = int(step) * self._costs(cell)[1]
        self._log({"search/loss": loss, "search/forward_tokens": tokens}, int(step))

    def _costs(self, cell: Cell) -> tuple[int, int]:
        """Returns the steps of the cell's search and the forward tokens of each."""
        if not isinstance(cell, Search):
            return 0, 0
        extra = extra_passes(self.registry.build("estimator", cell.estimator))
        passes = self.config.masks_per_step + extra + self.config.dense_passes
        return self.config.steps_for(extra), passes * self.config.batch_size * self.config.seq_len

    def _open(self, cell: Cell) -> None:
        """Starts the cell's run, unless it is under way."""
        if self.trackers or not self.names:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # the trackers' own log messages need it
        name = run_name(cell, self.config)
        runs: dict[str, dict[str, Any]] = {
            "tensorboard": {"run_name": name, "logging_dir": str(self.folder / "tensorboard")},
            "wandb": {
                "run_name": PROJECT,
                "name": name,
                "id": name.rpartition("_")[2],
                "group": self.folder.name,
                "dir": str(self.folder),
                "resume": "allow",
            },
            "trackio": {"run_name": PROJECT, "name": name, "group": self.folder.name, "resume": "allow"},
        }
        self.trackers = {logger: LOGGER_TYPE_TO_CLASS[logger](**runs[logger]) for logger in self.names}
        self._each(lambda tracker: tracker.start())
        self._each(lambda tracker: tracker.store_init_configuration(settings(cell, self.config)))

    def _log(self, values: Mapping[str, float | str], step: int) -> None:
        self._each(lambda tracker: tracker.log(values, step=step))

    def _close(self) -> None:
        self._each(lambda tracker: tracker.finish())
        self.trackers = {}

    def _each(self, act: Callable[[Any], None]) -> None:
        """What a logger prints is for people's eyes: stdout is for results."""
        for name, tracker in list(self.trackers.items()):
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    act(tracker)
            except Exception as error:  # noqa: BLE001 - a foreign library, on a disk or a network
                self.names.remove(name)
                del self.trackers[name]
                self.warn(f"{name} failed and gets no more: {plain(str(error)) or type(error).__name__}")


class _Followed(Task):
    """Hands on every step of a search, those before it was resumed too."""

    def __init__(self, task: Task, point: Callable[[float, float], None]) -> None:
        self.task, self.point = task, point

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        self.task.update(done, note, loss)
        if loss is not None:
            self.point(done, loss)

    def resume(self, losses: Sequence[float]) -> None:
        self.task.resume(losses)
        for step, loss in enumerate(losses, 1):
            self.point(step, loss)


def numbers(row: Row) -> dict[str, float]:
    """Returns what was measured of a cell, by name; of tasks by TASK/METRIC."""
    measured = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    found = {name: value for name, value in measured.items() if isinstance(value, int | float)}
    return found | {f"{task}/{metric}": value for task, scores in row.tasks.items() for metric, value in scores.items()}


def settings(cell: Cell, config: Comparison) -> dict[str, Any]:
    """Returns what the cell is and what all cells share, as text, numbers and booleans."""
    shared = config.model_dump(mode="json", include={*Settings.model_fields, *TaskSettings.model_fields})
    values = {**shared, **cell.model_dump()}
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }


def run_name(cell: Cell, config: Comparison) -> str:
    """Returns a name fit for a folder: what the cell is, and digits that tell it from the same under other settings."""
    named = cell.model_dump(exclude_none=True, exclude={"kind", "seed", "target"})
    named |= {"repair": None} if cell.repair == NO_REPAIR else {}
    asked = [] if cell.target is None else [cell.asked]
    seed = [] if cell.seed is None else [f"seed-{cell.seed}"]
    parts = [cell.kind, *(str(value) for value in named.values() if value is not None), *asked, *seed]
    words = [re.sub(r"[^\w.+=-]+", "-", part) for part in parts]
    names = config.model_dump(mode="json", include={*NAMES, *TaskSettings.model_fields})
    return "_".join([*words, cell_id(cell, config, names)])
