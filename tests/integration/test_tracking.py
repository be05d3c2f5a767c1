"""`compare --report-to`: what loggers get of a grid, when, and what is said where one is missing or fails."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as trackers
from commandline import Run, polyprune

from polyprune_core.config.cell import Dense
from polyprune_core.config.grid import cells
from polyprune_core.config.parsing import parse, read_toml
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results.row import Row
from polyprune_core.runs import loggers as tracking
from polyprune_core.runs.loggers import Tracking, run_name
from polyprune_core.utils.progress import Reporter

SMALL = ("compare", "-m", "tiny", "--limit", "4", "--seq-len", "32", "--eval-seq-len", "32", "--steps", "3")
SMALL += ("--calibration-samples", "4", "--batch-size", "2", "--calibration", "learn.txt", "--evaluation", "test.txt")
SMALL += ("--masks-per-step", "2", "--scope", "kind", "--scale", "raw")
# `residual` runs a forward pass a step beside its masks.
GRID = (*SMALL, "--baselines", "random", "--estimators", "rloo,residual", "--format", "json")
SEARCHES = ("rloo", "residual")


@pytest.fixture(scope="module", autouse=True)
def _two_short_texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("texts"))
        Path("learn.txt").write_text(calibration_text()[:9_000], "utf-8")
        Path("test.txt").write_text(evaluation_text()[:9_000], "utf-8")
        yield


class Recorder(trackers.GeneralTracker):
    """Notes down every call, in one list for all runs."""

    name, requires_logging_directory, main_process_only = "trackio", False, False
    calls: list[tuple[str, str, Any, Any]]
    fails_at: str | None = None

    def __init__(self, run_name: str, name: str, **settings: Any) -> None:
        super().__init__()
        self.run = name

    @property
    def tracker(self) -> str:
        return self.run

    def _note(self, what: str, values: Any = None, step: Any = None) -> None:
        sys.stdout.write("a logger that talks\n")
        self.calls.append((self.run, what, values, step))
        if what == self.fails_at:
            raise OSError("no space\nleft")

    def start(self) -> None:
        self._note("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._note("configure", values)

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._note("log", values, step)

    def finish(self) -> None:
        self._note("finish")


@pytest.fixture
def recorder(monkeypatch) -> type[Recorder]:
    """Takes the place of trackio."""
    monkeypatch.setitem(trackers.LOGGER_TYPE_TO_CLASS, "trackio", Recorder)
    monkeypatch.setitem(tracking.LIBRARIES, "trackio", ("accelerate",))
    monkeypatch.setattr(Recorder, "calls", [], raising=False)
    monkeypatch.setattr(Recorder, "fails_at", None)
    return Recorder


def track(store: Path, *more: object) -> Run:
    return polyprune(*GRID, "-o", store, "--report-to", "trackio", *more)


def runs(recorder: type[Recorder]) -> dict[str, list[tuple[str, Any, Any]]]:
    found: dict[str, list[tuple[str, Any, Any]]] = {}
    for run, *call in recorder.calls:
        found.setdefault(run, []).append(tuple(call))
    return found


def of(kind: str, found: dict[str, Any]) -> Any:
    (name,) = [name for name in found if name.startswith(kind)]
    return found[name]


def trace(store: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store / "cells" / f"{row['id']}.trace.jsonl").read_text().splitlines()]


def test_a_cell_is_a_run_with_its_settings_its_course_and_its_row(recorder, tmp_path) -> None:
    run = track(tmp_path / "store")
    assert run.status == 0, run.err
    found = runs(recorder)
    assert len(found) == len(run.rows) == 5
    for row, calls in zip(run.rows, found.values(), strict=True):
        course = trace(tmp_path / "store", row) if row["kind"] == "search" else []
        expected = ["start", "configure", *["log"] * len(course), "log", "finish"]
        assert [what for what, *_ in calls] == expected
        configuration = calls[1][1]
        assert configuration["model"] == "tiny"
        assert configuration["kind"] == row["kind"]
        assert configuration.get("estimator") == row["estimator"]
        for (_, values, step), record in zip(calls[2:-2], course, strict=True):
            assert step == record["step"]
            assert values["search/loss"] == pytest.approx(sum(record["losses"]) / len(record["losses"]), rel=1e-6)
            assert values["search/forward_tokens"] == record["forward_tokens"]
        _, result, step = calls[-2]
        assert step == len(course)
        assert result == {name: row[name.removeprefix("result/")] for name in result}
        assert {"result/perplexity", "result/sparsity_achieved", "result/forward_tokens"} <= result.keys()
        assert ("result/kl_to_dense" in result) == (row["kl_to_dense"] is not None)


def test_what_a_logger_prints_is_not_among_the_results(recorder, tmp_path) -> None:
    run = track(tmp_path / "store")
    assert "a logger that talks" not in run.out
    assert "a logger that talks" in run.err


def test_rows_of_finished_cells_are_logged_again_to_the_same_runs_and_courses_are_not(recorder, tmp_path) -> None:
    track(tmp_path / "store")
    first = runs(recorder)
    recorder.calls.clear()
    track(tmp_path / "store")
    again = runs(recorder)
    assert list(again) == list(first)
    for name, calls in again.items():
        assert [what for what, *_ in calls] == ["start", "configure", "log", "finish"]
        assert calls[-2:] == first[name][-2:]


def test_loggers_change_neither_cells_nor_what_is_kept_of_the_request(recorder, tmp_path) -> None:
    plain = polyprune(*GRID, "-o", tmp_path / "store")
    tracked = track(tmp_path / "store")
    assert tracked.rows == plain.rows
    assert "report_to" not in json.loads(tracked.out)["config"]


@pytest.mark.parametrize("moment", ["start", "configure", "log", "finish"])
def test_a_logger_that_fails_is_one_warning_and_the_grid_goes_on(recorder, tmp_path, moment) -> None:
    recorder.fails_at = moment
    run = track(tmp_path / "store")
    assert run.status == 0
    assert [row["status"] for row in run.rows] == ["ok"] * 5
    assert run.err.count("warning:") == 1
    assert "trackio failed and gets no more: no space left" in run.err
    assert [what for _, what, *_ in recorder.calls].count(moment) == 1
    assert recorder.calls[-1][1] == moment


def test_a_search_that_goes_on_is_logged_from_its_first_step(recorder, tmp_path) -> None:
    config = Comparison(estimators=("rloo",), report_to=("trackio",))
    cell = cells(config)[-1]
    with Tracking(config, load_registry(), tmp_path, Reporter()) as shown:
        with shown.task(cell.label, 50, cell) as task:
            task.resume([3.0, 2.0])
            task.update(3, "", 1.0)
        assert [(values["search/loss"], step) for _, what, values, step in recorder.calls if what == "log"] == [
            (3.0, 1),
            (2.0, 2),
            (1.0, 3),
        ]
        assert recorder.calls[-1][1] == "log"
    assert recorder.calls[-1][1] == "finish", "a run that is interrupted is closed"


def test_of_two_searches_of_one_label_each_has_its_own_course(recorder, tmp_path) -> None:
    config = Comparison(estimators=("rloo",), scope=("kind", "global"), report_to=("trackio",))
    first, second = [cell for cell in cells(config) if cell.kind == "search"]
    assert first.label == second.label
    with Tracking(config, load_registry(), tmp_path, Reporter()) as shown:
        with shown.task(second.label, 50, second) as task:
            task.update(1, "", 7.0)
        shown.row(Row("0" * 16, second, perplexity=5.0))
        with shown.task(first.label, 50, first) as task:
            task.update(1, "", 8.0)
            assert recorder.calls[-1] == (run_name(first, config), "log", recorder.calls[-1][2], 1)
    steps = [(run, values) for run, what, values, _ in recorder.calls if what == "log"]
    courses = {run: values["search/loss"] for run, values in steps if "search/loss" in values}
    assert courses[run_name(second, config)] == 7.0
    assert courses[run_name(first, config)] == 8.0


def test_a_cell_that_failed_is_logged_with_its_reason(recorder, tmp_path) -> None:
    config = Comparison(report_to=("trackio",))
    with Tracking(config, load_registry(), tmp_path, Reporter()) as shown:
        shown.row(Row("0" * 16, cells(config)[1], status="failed", error="why"))
    assert [values for _, what, values, _ in recorder.calls if what == "log"] == [{"result/error": "why"}]


def test_scores_of_tasks_are_numbers_of_the_row() -> None:
    row = Row("0" * 16, Dense(), perplexity=5.0, tasks={"arc_easy": {"acc": 0.5}}, error="text")
    assert tracking.numbers(row).items() >= {"perplexity": 5.0, "arc_easy/acc": 0.5}.items()
    assert not {"error", "kind", "sparsity", "status"} & tracking.numbers(row).keys()


def test_runs_of_other_settings_have_other_names() -> None:
    config = Comparison(estimators=("rloo",), baselines=("llm-pruner:taylor=vector",), budget=("kv-cache=0.7",))
    names = [run_name(cell, config) for cell in cells(config)]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set('/\\:*?"<>| ') for name in names)
    other = [run_name(cell, config.model_copy(update={"model": "tiny"})) for cell in cells(config)]
    assert not set(names) & set(other)


def test_a_missing_library_is_told_by_its_package_before_anything_loads(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for more in ((), ("--dry-run",)):
        run = polyprune(*GRID, "-o", tmp_path / "store", "--report-to", "wandb,tensorboard", *more)
        assert run.status == 2
        assert run.err.splitlines() == [
            "polyprune: --report-to needs wandb and tensorboard, which are not installed: "
            "pip install wandb tensorboard."
        ]
    assert not (tmp_path / "store").exists()


def test_to_check_for_loggers_loads_neither_them_nor_torch() -> None:
    program = (
        "import sys; from polyprune_core.runs import loggers as tracking;"
        "tracking.LIBRARIES['trackio'] = ('accelerate',);"
        "tracking.check_loggers(['trackio']);"
        "assert not {'torch', 'accelerate', 'tensorboard', 'numpy'} & set(sys.modules), 'heavy'"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_unknown_logger_names_those_there_are() -> None:
    run = polyprune(*GRID, "--report-to", "tensorbord")
    assert run.status == 2
    assert "Did you mean 'tensorboard'" in run.err


@pytest.mark.parametrize(
    ("text", "loggers"),
    [
        ('report-to = "none"', ()),
        ('report_to = "wandb"', ("wandb",)),
        ('report-to = ["trackio", "wandb", "trackio"]', ("trackio", "wandb")),
        ("", ()),
    ],
)
def test_a_file_says_it_too(tmp_path, text, loggers) -> None:
    (tmp_path / "grid.toml").write_text(text, "utf-8")
    assert parse(Comparison, read_toml(tmp_path / "grid.toml")).report_to == loggers


def test_none_beside_a_logger_is_refused() -> None:
    with pytest.raises(ConfigError, match="report-to"):
        parse(Comparison, {"report_to": ("none", "wandb")})


def test_the_environment_says_it_and_the_command_line_wins(recorder, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("POLYPRUNE_COMPARE_REPORT_TO", "trackio")
    few = (*SMALL, "--baselines", "random", "--format", "json", "-o", tmp_path / "store")
    assert polyprune(*few).status == 0
    assert len(runs(recorder)) == 2
    recorder.calls.clear()
    assert polyprune(*few, "--report-to", "none").status == 0
    assert not recorder.calls


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_reads_back_what_was_measured(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = polyprune(*GRID, "-o", tmp_path / "store", "--report-to", "tensorboard")
    assert run.status == 0, run.err
    for row in run.rows:
        parts = [row[name] for name in ("kind", "initializer", "estimator") if row[name]]
        (folder,) = (tmp_path / "store" / "tensorboard").glob("_".join(parts) + "_[h0-9]*")
        events = EventAccumulator(str(folder))
        events.Reload()
        (point,) = events.Scalars("result/perplexity")
        assert point.value == pytest.approx(row["perplexity"], rel=1e-6)
        if row["kind"] == "search":
            course = trace(tmp_path / "store", row)
            points = events.Scalars("search/forward_tokens")
            assert [(p.step, p.value) for p in points] == [(r["step"], r["forward_tokens"]) for r in course]
            assert len(events.Scalars("search/loss")) == len(course)
