"""Work given to several workers: each is built once and stays; what a lost one had in hand another does again.

What a worker is, a process here or one somewhere on a cluster, an engine says.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polyprune_core.errors import WorkerError

# How often a call is made again whose worker was lost, and a worker that was lost before it was ready is replaced.
RETRIES = 2
POLL_SECONDS = 1.0

Tell = Callable[[Any], None]
# Makes what a worker is asked; it can be pickled, and may tell of its progress.
Build = Callable[[Tell], Any]


@dataclass(frozen=True)
class Call:
    """A method of what a worker was built as, and its arguments, which can be pickled."""

    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Ready:
    """A worker is built."""

    worker: int


@dataclass(frozen=True)
class Answer:
    """What a call returned, or the error that it raised; building a worker raises in the same way."""

    worker: int
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class Told:
    """What a worker tells while it works."""

    worker: int
    message: Any


@dataclass(frozen=True)
class Lost:
    """A worker is no more."""

    worker: int
    reason: str


News = Ready | Answer | Told | Lost


class Engine(Protocol):
    """Where workers live. Workers are known by numbers, which are not used twice."""

    def start(self, build: Build) -> int:
        """Starts a worker, whose `Ready` or `Answer` with an error follows, and returns its number."""

    def ask(self, worker: int, call: Call) -> None:
        """Has a worker that is ready and idle answer a call."""

    def news(self, seconds: float) -> list[News]:
        """Returns what has happened, after at most `seconds`."""

    def stop(self, worker: int) -> None:
        """Ends a worker whatever it does; nothing more is heard of it."""

    def close(self) -> None:
        """Ends all of them."""


@dataclass(frozen=True)
class Done:
    """The outcome of the call at `index`: its value, or the error that it raised or that stopped it."""

    index: int
    value: Any = None
    error: BaseException | None = None


@dataclass
class _Worker:
    """`call` is the number of the call in hand; None while it is built, -1 while it is idle."""

    since: float
    call: int | None = None


IDLE = -1


class Crew:
    """`size` workers of one engine, all built alike; used as a context, it ends them.

    `patience`: seconds after which a worker that says nothing is taken for hung, None for no limit. `told` sees what
    workers tell, and `Lost` when one is lost.
    """

    def __init__(
        self,
        engine: Engine,
        build: Build,
        size: int,
        told: Callable[[int, Any], None] = lambda worker, message: None,
        patience: float | None = None,
    ) -> None:
        self.engine, self.build, self.size, self.told, self.patience = engine, build, size, told, patience
        self._workers: dict[int, _Worker] = {}
        self._made = 0
        self._faults = 0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.clear()
        self.engine.close()

    def results(self, calls: Sequence[Call]) -> Iterator[Done]:
        """Yields the outcome of every call once, in the order in which they are done.

        A call whose worker was lost is made again by another, at most `RETRIES` times.

        Raises:
            WorkerError: no worker can be had.
            PolypruneError: what a worker is built of cannot be had.
        """
        first, self._made = self._made, self._made + len(calls)
        waiting, tries, left = deque(range(len(calls))), Counter[int](), len(calls)
        while left:
            while len(self._workers) < self.size:
                self._workers[self.engine.start(self.build)] = _Worker(time.monotonic())
            for number, worker in self._workers.items():
                if not waiting:
                    break
                if worker.call == IDLE:
                    index = waiting.popleft()
                    worker.call, worker.since = first + index, time.monotonic()
                    self.engine.ask(number, calls[index])
            for news in [*self.engine.news(POLL_SECONDS), *self._hung()]:
                if news.worker not in self._workers:
                    continue
                had = self._take(news)
                if had is None or had < first:  # nothing, or of calls that nobody waits for any more
                    continue
                index = had - first
                tries[index] += 1
                if isinstance(news, Answer):
                    yield Done(index, news.value, news.error)
                elif isinstance(news, Lost) and tries[index] > RETRIES:
                    yield Done(index, None, WorkerError(f"it was given up after {tries[index]} tries: {news.reason}"))
                else:
                    waiting.appendleft(index)
                    continue
                left -= 1

    def _take(self, news: News) -> int | None:
        """Takes in what happened, and returns the call that a worker has no longer in hand."""
        worker = self._workers[news.worker]
        had, worker.since = worker.call, time.monotonic()
        match news:
            case Told():
                self.told(news.worker, news.message)
                return None
            case Ready():
                worker.call, self._faults = IDLE, 0
                return None
            case Answer() if had is None:
                assert news.error is not None
                raise news.error
            case Answer():
                worker.call = IDLE
            case Lost():
                self._lose(news, had)
        return None if had == IDLE else had

    def _lose(self, news: Lost, had: int | None) -> None:
        del self._workers[news.worker]
        self.told(news.worker, news)
        self._faults += had is None
        if self._faults > RETRIES:
            raise WorkerError(f"no worker can be started: {news.reason}")

    def _hung(self) -> list[News]:
        """Stops the workers that have said nothing for too long."""
        if self.patience is None:
            return []
        now = time.monotonic()
        hung = [
            number
            for number, worker in self._workers.items()
            if worker.call != IDLE and now - worker.since > self.patience
        ]
        for number in hung:
            self.engine.stop(number)
        return [Lost(number, f"a worker said nothing for {self.patience:g} seconds and was stopped") for number in hung]
