"""Cells on several workers: the same rows as one after another in this process, whoever dies in between."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import pytest
from elsewhere import Fork, Here
from forks import forked_workers, forks
from grids import GRID, cell_files, grid, results_of

from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results.store import Store
from polyprune_core.runs import crewed
from polyprune_core.runs.compare import compare
from polyprune_core.utils.progress import Reporter, Task

pytestmark = pytest.mark.usefixtures("two_short_texts")

ENGINES = ["local", pytest.param("ray", marks=pytest.mark.slow)]
LONG = {
    **{"model": "tiny", "limit": 4, "seq_len": 32, "eval_seq_len": 32, "calibration_samples": 4, "steps": 20},
    **{"calibration": "learn.txt", "evaluation": "test.txt", "policy": "probabilities", "masks_per_step": 4},
    **{"estimators": ("rloo", "reinforce"), "baselines": ("random",), "threads": 1},
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    if request.param == "ray":
        pytest.importorskip("ray")
        yield ("--executor", "ray", "--workers", "2", "--cpus-per-cell", "0.5", "--threads", "1")
    else:
        with forked_workers():
            yield ("--workers", "2", "--threads", "1")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this machine are in this process."""
    monkeypatch.setattr("polyprune_core.utils.processes.Processes", Here)


def test_a_store_half_filled_here_is_filled_by_workers_and_read_as_one(unbroken, copy, engine) -> None:
    """The rows are those that one process gives, and each is told once."""
    rows = [row for row in unbroken[1].rows if row["estimator"] in ("rloo", "antithetic") or row["kind"] == "dense"]
    for row in rows:
        for path in (copy / "cells").glob(f"{row['id']}*"):
            path.unlink()
    kept = cell_files(copy)
    run = grid(copy, *engine)
    assert run.status == 0, run.err
    assert results_of(run.rows) == results_of(unbroken[1].rows)
    assert {name: cell_files(copy)[name] for name in kept} == kept
    assert not list((copy / "cells").glob(".*"))
    assert "polyprune: " not in run.err
    assert len([line for line in run.err.splitlines() if "/10 " in line]) == len(run.rows) == 10


@pytest.mark.usefixtures("here")
def test_masks_spread_over_workers_give_the_rows_that_one_process_gives(unbroken, tmp_path) -> None:
    run = grid(tmp_path / "store", "--mask-workers", "2", "--threads", "1")
    assert run.status == 0, run.err
    assert results_of(run.rows) == results_of(unbroken[1].rows)


@pytest.mark.usefixtures("here")
def test_what_cannot_be_had_is_said_once_and_nothing_is_run(tmp_path) -> None:
    run = grid(tmp_path / "store", "-m", "no-such-model", "--workers", "2")
    assert run.status == 2
    assert run.err.count("no model named 'no-such-model'") == 1
    assert cell_files(tmp_path / "store") == {}


def test_options_of_ray_are_refused_without_it(tmp_path) -> None:
    run = grid(tmp_path / "store", "--gpus-per-cell", "0.5")
    assert run.status == 2
    assert "--gpus-per-cell is about --executor ray" in run.err


@pytest.mark.usefixtures("here")
def test_where_the_store_cannot_be_seen_files_come_back_with_the_rows(unbroken, tmp_path, monkeypatch) -> None:
    elsewhere = tmp_path / "another-file-system"
    marked = crewed.Crewed._marked

    @contextmanager
    def unseen(self: Any) -> Iterator[str]:
        with marked(self) as mark:
            (self.store.cells / mark).unlink()
            yield mark

    monkeypatch.setattr(crewed.Crewed, "_marked", unseen)
    run = grid(elsewhere, "--workers", "2", "--threads", "1", "--estimators", "rloo")
    assert run.status == 0, run.err
    here = {row["id"]: row for row in results_of(unbroken[1].rows)}
    assert [here[row["id"]] for row in results_of(run.rows)] == results_of(run.rows)
    kinds = {name.partition(".")[2] for name in os.listdir(elsewhere / "cells")}
    assert kinds == {name.partition(".")[2] for name in os.listdir(unbroken[0] / "cells")} - {"lock"}


class Killer(Reporter):
    """Kills the first worker that is seen in a search, once."""

    def __init__(self, name: str) -> None:
        self.name, self.killed = name, list[int]()
        self.warnings = list[str]()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        yield _Killing(self) if about else Task()


class _Killing(Task):
    def __init__(self, killer: Killer) -> None:
        self.killer = killer

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        if self.killer.killed:
            return
        found = [child for child in psutil.Process().children(recursive=True) if self.killer.name in _named(child)]
        assert found
        found[0].kill()
        self.killer.killed.append(found[0].pid)


def _named(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local", "ray"])
def test_a_worker_killed_within_a_search_changes_no_row(name, tmp_path) -> None:
    if name == "ray":
        pytest.importorskip("ray")
    asked: dict[str, Any] = {"executor": name, "workers": 2} | ({"cpus_per_cell": 0.5} if name == "ray" else {})
    killer = Killer("ray::Member" if name == "ray" else "polyprune_core.utils.worker")
    rows = {}
    for store, reporter, more in (("one", Reporter(), {}), ("many", killer, asked)):
        results = compare(Comparison(**LONG, **more), load_registry(), Store(tmp_path / store), reporter)
        rows[store] = results_of([row.to_json() for row in results.rows])
    assert len(killer.killed) == 1
    assert rows["many"] == rows["one"]
    assert all(row["status"] == "ok" for row in rows["one"])


class Leaver(Reporter):
    """Takes a node from the cluster once a search steps, with the workers on it."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self.leave, self.left = leave, 0
        self.statuses = list[str]()

    def status(self, text: str) -> None:
        self.statuses.append(text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        yield _Leaving(self) if about else Task()


class _Leaving(Task):
    def __init__(self, leaver: Leaver) -> None:
        self.leaver = leaver

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        if not self.leaver.left:
            self.leaver.left += 1
            self.leaver.leave()


@pytest.mark.slow
def test_a_node_lost_within_a_search_changes_no_row_where_no_other_has_room(tmp_path, monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        lost, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
        leaver = Leaver(lambda: cluster.remove_node(lost, allow_graceful=False))
        asked: dict[str, Any] = {"executor": "ray", "address": cluster.address, "workers": 2, "cpus_per_cell": 1}
        many = compare(Comparison(**LONG, **asked), load_registry(), Store(tmp_path / "many"), leaver)
        one = compare(Comparison(**LONG), load_registry(), Store(tmp_path / "one"), Reporter())
    finally:
        cluster.shutdown()
    assert leaver.left == 1
    (told,) = [text for text in leaver.statuses if "a worker of Ray was lost" in text]
    assert told.endswith("what it had in hand is run again")
    assert results_of([row.to_json() for row in many.rows]) == results_of([row.to_json() for row in one.rows])


@forks
@pytest.mark.parametrize("workers", ["forks", pytest.param("interpreters", marks=pytest.mark.slow)])
def test_an_interrupted_run_leaves_no_worker_and_a_store_that_goes_on_to_the_same_rows(
    unbroken, tmp_path, cells_run, workers
) -> None:
    store = tmp_path / "store"
    with forked_workers() if workers == "forks" else nullcontext():
        run = Fork(os.setsid, *GRID, "--workers", "2", "--threads", "1", "-o", store)
    here = psutil.Process(run.pid)
    while not cell_files(store):
        assert not os.waitpid(run.pid, os.WNOHANG)[0]
        time.sleep(0.05)
    workers = [child.pid for child in here.children(recursive=True)]
    assert workers
    os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C does: to the whole group
    stopped = run.finished()
    assert stopped.status == 130, stopped.err
    until = time.monotonic() + 10
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, workers))
    finished = len(cell_files(store))
    assert finished >= 1
    rest = grid(store)
    assert rest.status == 0, rest.err
    assert len(cells_run) == 10 - finished
    assert results_of(rest.rows) == results_of(unbroken[1].rows)
