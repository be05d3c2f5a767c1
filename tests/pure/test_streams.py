"""What the process writes to, in which letters, and what stops it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from forks import posix

from polyprune_core.cli.streams import stoppable, streams

pytestmark = posix

PROGRAM = "from polyprune_core.cli import main; main()"
LISTED = (sys.executable, "-c", PROGRAM, "plugins", "list")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "0.2 → 0.21 ±0.1 é … ─"), ("cp1252", "0.2 -> 0.21 ±0.1 é … -"), ("ascii", "0.2 -> 0.21 +/-0.1 ? ... -")],
)
def test_every_sign_can_be_written_in_every_encoding(monkeypatch, encoding: str, shown: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with streams():
        sys.stdout.write("0.2 → 0.21 ±0.1 é … ─")
        sys.stdout.flush()
    assert written.getvalue().decode(encoding) == shown
    assert sys.stdout.errors == "strict"


@pytest.mark.parametrize(
    ("place", "reason"), [(">&-", "stdout is closed"), ("> /dev/full", "No space left"), ("", "Broken pipe")]
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_stdout_that_takes_nothing_is_one_line(place: str, reason: str) -> None:
    unread, pipe = os.pipe()
    os.close(unread)
    command = ("bash", "-c", f'"$0" "$@" {place}', *LISTED)
    found = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(pipe)
    assert found.returncode == 2, found
    (line,) = found.stderr.splitlines()
    assert line.startswith("polyprune: ")
    assert reason in line


def test_a_stderr_that_is_closed_costs_no_result() -> None:
    found = subprocess.run(
        ("bash", "-c", '"$0" "$@" 2>&-', *LISTED), stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    assert found.returncode == 0
    assert "thinet" in found.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_would_end_the_process_interrupts_it(name: str) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with stoppable() as stopped, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert stopped == [number]
    assert signal.getsignal(number) == before


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stopped:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopped == []
    finally:
        signal.signal(signal.SIGHUP, before)
