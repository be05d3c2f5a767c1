"""Commands in a fork of this process, which has its libraries loaded, and workers of a crew in this process itself."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from commandline import Run, polyprune
from forks import end_with

from polyprune_core.cli import main
from polyprune_core.utils.crew import Answer, Build, Call, News, Ready, Told
from polyprune_core.utils.worker import Resident


class Fork:
    """A process like this one that runs one command after `prepare`."""

    def __init__(self, prepare: Callable[[], object], *words: object) -> None:
        self._said, theirs = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            self._run(theirs, prepare, words)
        os.close(theirs)

    def _run(self, pipe: int, prepare: Callable[[], object], words: tuple[object, ...]) -> NoReturn:
        def work() -> int:
            prepare()
            done = polyprune(*words)
            with open(pipe, "wb") as file:
                pickle.dump((done.out, done.err), file)
            return int(done.status or 0)

        end_with(work)

    def finished(self) -> Run:
        """Waits, and returns what it left behind; its status is below 0 where a signal ended it."""
        with open(self._said, "rb") as file:
            said = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return Run(status, *pickle.loads(said)) if said else Run(status, "", "")


def screen(environment: Mapping[str, str], *words: object) -> str:
    """Returns what a terminal gets from a command."""
    import pty  # which Windows has not

    pid, ours = pty.fork()
    if not pid:

        def work() -> int:
            os.environ.clear()
            os.environ.update(environment)
            sys.stdin, sys.stdout, sys.stderr = (os.fdopen(end, "w" if end else "r") for end in range(3))
            sys.argv = ["polyprune", *map(str, words)]
            try:
                main()
            except SystemExit as stop:
                return int(stop.code or 0)
            finally:
                sys.stdout.flush()
            return 0

        end_with(work)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux tells that nobody writes to the terminal any more
        while block := os.read(ours, 65536):
            seen += block
    os.close(ours)
    assert os.waitpid(pid, 0)[1] == 0, seen
    return seen.decode()


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
