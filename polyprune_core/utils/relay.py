"""Progress of work in another process: told there as messages, and shown here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from polyprune_core.utils.crew import Lost, Tell
from polyprune_core.utils.progress import Reporter, Task

SECONDS_BETWEEN = 0.5


class Relay(Reporter):
    """Tells all that it receives, steps of a task at most every `SECONDS_BETWEEN`, none of them left out."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._held: list[tuple[Any, ...]] = []
        self._latest = 0.0
        self._tasks = 0

    def status(self, text: str) -> None:
        self._send("status", text)

    def warn(self, text: str) -> None:
        self._send("warn", text)

    def detail(self, text: str) -> None:
        self._send("detail", text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        self._tasks += 1
        number = self._tasks
        self._send("begin", number, label, total, about)
        try:
            yield _Told(self, number)
        finally:
            self._send("end", number)

    def _send(self, *message: Any) -> None:
        self._held.append(message)
        if message[0] != "update" or time.monotonic() - self._latest >= SECONDS_BETWEEN:
            held, self._held = self._held, []
            self._latest = time.monotonic()
            self._tell(held)


class _Told(Task):
    def __init__(self, relay: Relay, number: int) -> None:
        self.relay, self.number = relay, number

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        self.relay._send("update", self.number, done, note, loss)

    def resume(self, losses: Sequence[float]) -> None:
        self.relay._send("resume", self.number, list(losses))


class Shown:
    """Shows what several workers tell on one reporter; what all of them say alike is shown once.

    Used as a context, it ends what is under way.
    """

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._open: dict[tuple[int, int], tuple[AbstractContextManager[Task], Task]] = {}
        self._said: set[tuple[str, str]] = set()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._open):
            self._end(key)

    def __call__(self, worker: int, messages: Any) -> None:
        """Takes in what a worker told, or that it is lost."""
        if isinstance(messages, Lost):
            for key in [key for key in self._open if key[0] == worker]:
                self._end(key)
            self.reporter.status(f"{messages.reason}; what it had in hand is run again")
            return
        for kind, *content in messages:
            if kind in ("status", "warn", "detail"):
                self._say(kind, *content)
            else:
                self._work(worker, kind, *content)

    def _say(self, kind: str, text: str) -> None:
        if (kind, text) not in self._said:
            self._said.add((kind, text))
            getattr(self.reporter, kind)(text)

    def _work(self, worker: int, kind: str, number: int, *content: Any) -> None:
        key = (worker, number)
        if kind == "begin":
            context = self.reporter.task(*content)
            self._open[key] = (context, context.__enter__())
        elif kind == "end":
            self._end(key)
        elif key in self._open:
            getattr(self._open[key][1], kind)(*content)

    def _end(self, key: tuple[int, int]) -> None:
        if key in self._open:
            self._open.pop(key)[0].__exit__(None, None, None)
