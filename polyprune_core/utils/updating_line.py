"""Progress as one line that is written over itself, as a terminal and a notebook both show it."""

from __future__ import annotations

import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from polyprune_core.utils.progress import Reporter, Task

SECONDS_BETWEEN = 0.1
NOTEBOOK_WIDTH = 100
OURS = "polyprune_core"


class UpdatingLine(Reporter):
    """Draws what goes on in one line of stderr, and removes it when its `with` block ends.

    Nothing is drawn with `quiet`, or where a line cannot be written over, as in a file or a pipe. What the reader of a
    result has to know is a warning of Python's own, told of the line that called us.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.stream = sys.stderr
        self.drawn = not quiet and can_be_written_over(self.stream)
        self.prefix = ""
        self.length = 0
        self.latest = 0.0

    def __enter__(self) -> UpdatingLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def status(self, text: str) -> None:
        self._write(text)

    def warn(self, text: str) -> None:
        self._write("")
        warn_caller(text)

    @contextmanager
    def task(self, label: str, total: int, about: object = None) -> Iterator[Task]:
        self._write(label)
        yield _Part(self, label, total)

    def update(self, text: str) -> None:
        """Shows a text that is soon followed by others: not each of them is drawn."""
        if time.monotonic() - self.latest >= SECONDS_BETWEEN:
            self._write(text)

    def _write(self, text: str) -> None:
        if not self.drawn or not (text or self.length):
            return
        columns = shutil.get_terminal_size().columns if self.stream.isatty() else NOTEBOOK_WIDTH
        line = f"{self.prefix}{text}"[: columns - 1] if text else ""
        self.stream.write(f"\r{line:<{self.length}}" + ("" if line else "\r"))
        self.stream.flush()
        self.length, self.latest = len(line), time.monotonic()


class _Part(Task):
    def __init__(self, line: UpdatingLine, label: str, total: int) -> None:
        self.line, self.label, self.total = line, label, total

    def update(self, done: float, note: str = "", loss: float | None = None) -> None:
        if self.total > 1:
            self.line.update(f"{self.label}: {done:g} of {self.total}" + (f", {note}" if note else ""))

    def resume(self, losses: Sequence[float]) -> None:
        self.update(len(losses))


def can_be_written_over(stream: TextIO) -> bool:
    """Whether a stream is a terminal or a notebook's."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def warn_caller(text: str) -> None:
    """Warns in Python's way, of the first line on the stack that is not ours."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
