"""Runs the command line in this process, for the tests of what it prints and returns."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from polyprune_core.cli import main


@dataclass(frozen=True)
class Run:
    """What a command left behind: exit status, stdout, stderr."""

    status: Any
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of results printed as JSON."""
        return json.loads(self.out, parse_constant=pytest.fail)["rows"]


def polyprune(*arguments: object) -> Run:
    """Runs one command; a traceback is an exception here."""
    out, err = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["polyprune", *map(str, arguments)])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            status: Any = 0
        except SystemExit as stop:
            status = stop.code
    return Run(status, out.getvalue(), err.getvalue())


def refused(run: Run, *parts: object) -> None:
    """Checks for status 2 and one last line that says why, without a traceback and with nothing on stdout."""
    assert run.status == 2, run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    complaints = [line for line in run.err.splitlines() if line.startswith("polyprune: ")]
    assert complaints == run.err.splitlines()[-1:]
    for part in parts:
        assert str(part) in complaints[0]


@contextlib.contextmanager
def runtimes_here() -> Iterator[None]:
    """Has runtimes answer in this process, which has its libraries loaded, where `--verify` would start a new one."""
    from polyprune_core.evaluation import runtime_driver
    from polyprune_core.runs import verification

    def run(command: list[str], cwd: str, **_: object) -> CompletedProcess[str]:
        with contextlib.chdir(cwd), mock.patch.dict(os.environ):  # a process of its own leaves nothing of either
            answer = runtime_driver.ask(json.loads(Path(command[-2]).read_text("utf-8")))
        Path(command[-1]).write_text(json.dumps(answer), "utf-8")
        return CompletedProcess(command, 0, "", "")

    with mock.patch.object(verification, "subprocess", SimpleNamespace(run=run)):
        yield
