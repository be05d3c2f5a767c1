"""Workers that die, hang and raise: what they had in hand is done again elsewhere, or is told as an error."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from forks import posix

from polyprune_core.errors import ModelError, WorkerError
from polyprune_core.utils.crew import RETRIES, Call, Crew, Engine, Lost
from polyprune_core.utils.processes import Processes

pytestmark = posix


@dataclass(frozen=True)
class Build:
    """Makes a worker; `folder` is where workers leave signs of what they have done."""

    folder: Path
    fault: str = ""

    def __call__(self, tell: Any) -> Worker:
        if self.fault == "model":
            raise ModelError("there is no such model")
        if self.fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return Worker(self.folder, tell)


class Worker:
    def __init__(self, folder: Path, tell: Any) -> None:
        self.folder, self.tell = folder, tell

    def square(self, number: int) -> tuple[int, int]:
        self.tell(number)
        return number * number, os.getpid()

    def dying(self, number: int, times: int) -> int:
        """Dies so often, and then answers."""
        if self._first(number, times):
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def hanging(self, number: int) -> int:
        if self._first(number, 1):
            time.sleep(600)
        return number

    def raising(self, error: BaseException) -> None:
        raise error

    def _first(self, number: int, times: int) -> bool:
        done = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{done}").touch()
        return done < times


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "processes":
        return Processes()
    pytest.importorskip("ray")
    from polyprune_core.utils.ray_workers import RayWorkers, Share

    return RayWorkers(share=Share(cpus=0.5), talking=True)


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def crew(engine: Engine, tmp_path: Path, told: list[Any]) -> Iterator[Crew]:
    with Crew(engine, Build(tmp_path), 2, lambda worker, message: told.append(message)) as crew:
        yield crew


def reasons(told: list[Any]) -> list[str]:
    """Returns why workers were lost."""
    return [each.reason for each in told if isinstance(each, Lost)]


def outcomes(crew: Crew, *calls: Call) -> list[Any]:
    """Returns values and errors in the order of the calls."""
    found = sorted(crew.results(calls), key=lambda done: done.index)
    assert [done.index for done in found] == list(range(len(calls)))
    return [done.error or done.value for done in found]


def test_every_call_is_answered_once_by_workers_that_stay(crew, told) -> None:
    found = [outcomes(crew, *(Call("square", (n,)) for n in range(6))) for _ in range(3)]
    assert [[value for value, _ in each] for each in found] == [[n * n for n in range(6)]] * 3
    assert len({process for each in found for _, process in each}) <= 2
    assert sorted(each for each in told if each is not None) == sorted([*range(6)] * 3)


def test_what_a_killed_worker_had_in_hand_is_done_by_another(crew, told) -> None:
    assert outcomes(crew, *(Call("dying", (n, int(n in (1, 2)))) for n in range(5))) == [0, 1, 2, 3, 4]
    assert len(reasons(told)) == 2


def test_what_kills_every_worker_is_given_up_and_the_rest_is_done(crew) -> None:
    found = outcomes(crew, Call("dying", (0, RETRIES + 1)), Call("dying", (1, 0)), Call("dying", (2, RETRIES)))
    assert found[1:] == [1, 2]
    assert isinstance(found[0], WorkerError)
    assert f"given up after {RETRIES + 1} tries" in str(found[0])


def test_a_worker_that_hangs_is_stopped_and_its_call_made_again(crew, told) -> None:
    crew.patience = 30.0
    outcomes(crew, *[Call("square", (n,)) for n in range(4)])  # both are built
    crew.patience = 3.0
    assert outcomes(crew, *(Call("hanging", (n,)) for n in range(2))) == [0, 1]
    assert all("said nothing for 3 seconds" in reason for reason in reasons(told))


def test_an_error_in_a_call_is_its_outcome_and_the_worker_goes_on(crew, told) -> None:
    found = outcomes(
        crew, Call("raising", (ModelError("why"),)), Call("raising", (KeyError("x"),)), Call("dying", (0, 0))
    )
    assert (type(found[0]), str(found[0]), found[2]) == (ModelError, "why", 0)
    assert isinstance(found[1], WorkerError)
    assert "KeyError" in str(found[1])
    assert reasons(told) == []


def test_calls_that_nobody_waits_for_any_more_do_not_disturb_later_ones(crew) -> None:
    for _ in crew.results([Call("square", (n,)) for n in range(8)]):
        break
    assert [value for value, _ in outcomes(crew, Call("square", (9,)), Call("square", (8,)))] == [81, 64]


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [("model", ModelError, "no such model"), ("death", WorkerError, "no worker can be started")],
)
def test_workers_that_cannot_be_built_end_the_work_with_the_reason(engine, tmp_path, fault, error, text) -> None:
    with Crew(engine, Build(tmp_path, fault), 2) as crew, pytest.raises(error, match=text):
        outcomes(crew, Call("square", (1,)))


def test_a_process_ends_with_the_one_that_started_it(tmp_path) -> None:
    with Crew(Processes(), Build(tmp_path), 2) as crew:
        processes = {process for _, process in outcomes(crew, *(Call("square", (n,)) for n in range(8)))}
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
