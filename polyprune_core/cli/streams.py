"""The process's own ends: what it can write to, in which letters, and the signals that stop it."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from types import FrameType
from typing import Any, TextIO, cast

from polyprune_core.errors import ConfigError
from polyprune_core.utils.interrupts import watched

SPELLED = {
    **{"→": "->", "±": "+/-", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "·": ".", "²": "^2"},
    **{"ᵀ": "^T", "∇": "grad ", "✓": "yes", "✗": "no", "≤": "<=", "≥": ">=", "≈": "~"},
    "─": "-",
    **dict.fromkeys("▁▂▃▄▅▆▇█━", "#"),
}
STOPPING = ("SIGTERM", "SIGHUP")


def spelled(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: writes a sign that the encoding lacks in signs that every encoding has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELLED.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("polyprune", spelled)


class _Stdout:
    """A stream whose faults are user errors: click would end the process at some of them without a word."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._told():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._told():
            self._stream.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):  # what is left goes nowhere, and is not tried again when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise ConfigError(f"not everything could be written to stdout: {error.strerror}.") from error


def _own_stdout() -> TextIO | None:
    """Makes sys.stdout a stream of results alone: whoever writes to the process's own stdout is heard on stderr.

    Returns the stream, None where sys.stdout is not the process's own.
    """
    out = sys.stdout
    try:
        if not isinstance(out, TextIOWrapper) or out.fileno() != 1:
            return None
        out.flush()
    except (OSError, ValueError):
        return None
    own = TextIOWrapper(open(os.dup(1), "wb"), out.encoding, out.errors, line_buffering=out.line_buffering)  # noqa: SIM115
    try:
        os.dup2(2, 1)
    except OSError:  # there is no stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = own
    return own


@contextmanager
def streams() -> Iterator[None]:
    """Lets stdout and stderr take every sign while the block runs; a fault of stdout is a user error.

    A stderr that is not there swallows what it gets.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    out = sys.stdout
    ours = _own_stdout()
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    for stream, _ in before:
        stream.reconfigure(errors="polyprune")
    if sys.stdout is not None:
        sys.stdout = cast(TextIO, _Stdout(sys.stdout))
    try:
        yield
    finally:
        sys.stdout = out
        if ours is not None and out is not None:
            with suppress(OSError, ValueError):
                ours.flush()
            os.dup2(ours.fileno(), 1)
            with suppress(OSError, ValueError):
                ours.close()
        for stream, errors in before:
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors or "strict")


def require_stdout() -> None:
    """Raises ConfigError where there is no stdout."""
    if sys.stdout is None:
        raise ConfigError("stdout is closed, so results have nowhere to go; send it to a file, or to /dev/null.")


def tell(text: str) -> None:
    """Writes foreign text to stderr, line by line without what controls a terminal; where it is gone, nothing."""
    with suppress(OSError, ValueError):
        for line in text.splitlines():
            print("".join(c if c.isprintable() else " " for c in line).rstrip(), file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """Makes a signal that would end the process an interruption, so that nothing half-written stays.

    Yields the list that the signal's number is put into. Signals that are ignored or handled stay so; Ctrl-C does what
    it always does, and is known as the user's.
    """
    received: list[int] = []
    ours: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    with watched() as interrupts:

        def stop(number: int, frame: FrameType | None) -> None:
            received.append(number)
            interrupts.append(number)
            for each in ours:
                signal.signal(each, signal.SIG_IGN)
            raise KeyboardInterrupt

        def interrupt(number: int, frame: FrameType | None) -> None:
            interrupts.append(number)
            raise KeyboardInterrupt

        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        ours += [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
        for number in ours:
            signal.signal(number, stop)
        usual = signal.getsignal(signal.SIGINT)
        if usual is signal.default_int_handler:
            signal.signal(signal.SIGINT, interrupt)
        try:
            yield received
        finally:
            for number in ours:
                signal.signal(number, signal.SIG_DFL)
            if usual is signal.default_int_handler:
                signal.signal(signal.SIGINT, usual)
