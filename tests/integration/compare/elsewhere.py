"""Commands in a fork of this process, which has its libraries loaded, and workers of a crew in this process itself."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from commandline import Run, polyprune

from polyprune_core.utils.crew import Answer, Build, Call, News, Ready, Told
from polyprune_core.utils.worker import Resident

forks = pytest.mark.skipif(
    sys.platform != "linux", reason="a fork of a process with torch in it is safe on Linux alone"
)


class Fork:
    """A process like this one that runs one command after `prepare`."""

    def __init__(self, prepare: Callable[[], object], *words: object) -> None:
        self._said, theirs = os.pipe()
        self._process = os.fork()
        if not self._process:
            self._run(theirs, prepare, words)
        os.close(theirs)

    def _run(self, pipe: int, prepare: Callable[[], object], words: tuple[object, ...]) -> NoReturn:
        try:
            prepare()
            done = polyprune(*words)
            with open(pipe, "wb") as file:
                pickle.dump((done.out, done.err), file)
            os._exit(int(done.status or 0))
        except BaseException:  # noqa: BLE001 - nothing may go on to run the tests that are left
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(70)

    def finished(self) -> Run:
        """Waits, and returns what it left behind; its status is below 0 where a signal ended it."""
        with open(self._said, "rb") as file:
            said = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])
        return Run(status, *pickle.loads(said)) if said else Run(status, "", "")


def killed_before(what: Any, name: str, count: int, counts: Callable[..., bool]) -> None:
    """Has this process killed in the call of `what.name` that is number `count` of those that count."""
    usual, calls = getattr(what, name), []

    def dying(*given: Any) -> Any:
        if counts(*given):
            calls.append(given)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(*given)

    setattr(what, name, dying)


class Here:
    """An engine whose workers are in this process, for what does not depend on where they are."""

    def __init__(self, *_: object) -> None:
        self._workers: list[Resident] = []
        self._news: list[News] = []

    def start(self, build: Build) -> int:
        worker, number = Resident(), len(self._workers)
        self._workers.append(worker)
        error = worker.build(pickle.loads(pickle.dumps(build)), lambda said: self._news.append(Told(number, said)))
        self._news.append(Answer(number, None, error) if error else Ready(number))
        return number

    def ask(self, worker: int, call: Call) -> None:
        answer = self._workers[worker].call(pickle.loads(pickle.dumps(call)))
        self._news.append(Answer(worker, *pickle.loads(pickle.dumps(answer))))

    def news(self, seconds: float) -> list[News]:
        found, self._news = self._news, []
        return found

    def stop(self, worker: int) -> None:
        raise AssertionError(f"worker {worker} is taken for hung")

    def close(self) -> None:
        self._workers.clear()
