"""How work reports that it goes on; the command line draws it, a library user may ignore it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Reporter:
    """Receives progress and does nothing with it."""

    def status(self, text: str) -> None:
        """One line about what happens now."""

    def warn(self, text: str) -> None:
        """Something the reader of the table has to know."""

    def detail(self, text: str) -> None:
        """One line for whoever wants to follow closely."""

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        """A stretch of work of `total` parts, 0 where they cannot be counted; `about` is what is worked on."""
        yield Task()


class Task:
    """A stretch of work under way."""

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        """`done` parts are finished; `loss` is the latest of a search, in nats per token."""

    def resume(self, losses: Sequence[float]) -> None:
        """A search goes on that has been through these losses, one a step."""
