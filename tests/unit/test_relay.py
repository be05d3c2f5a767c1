"""What several workers tell, shown on one reporter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from polyprune_core.utils.crew import Lost
from polyprune_core.utils.progress import Reporter, Task
from polyprune_core.utils.relay import Shown


class Recorder(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def status(self, text: str) -> None:
        self.told.append(text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        self.told.append(f"begin {label}")
        yield Task()
        self.told.append(f"end {label}")


def shown(*messages: tuple[int, Any]) -> list[str]:
    reporter = Recorder()
    with Shown(reporter) as show:
        for worker, told in messages:
            show(worker, told)
    return reporter.told


def test_what_two_workers_say_alike_is_shown_once() -> None:
    assert shown((1, [("status", "reading")]), (2, [("status", "reading"), ("status", "done")])) == ["reading", "done"]


def test_a_lost_worker_ends_what_it_was_at_and_is_told_of_each_time() -> None:
    begin = [("begin", 1, "search", 5, None)]
    told = shown((1, begin), (2, begin), (1, Lost(1, "a worker died")), (2, Lost(2, "a worker died")))
    gone = "a worker died; what it had in hand is run again"
    assert told == ["begin search", "begin search", "end search", gone, "end search", gone]
