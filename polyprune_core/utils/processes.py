"""Workers as processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from polyprune_core.utils.crew import Answer, Build, Call, Lost, News, Ready, Told

SECONDS_TO_END = 5.0
# The status of a process that SIGKILL ended, which Windows does not have.
KILLED = -9


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    pipe: Connection


class Processes:
    """Fresh interpreters that read calls from a pipe.

    They import what they are given by its module, never the script that started us. `environment` is set in them.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.environment = dict(environment or {})
        self._running: dict[int, _Process] = {}
        self._started = 0

    def start(self, build: Build) -> int:
        """See `Engine`."""
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "polyprune_core.utils.worker", str(theirs.fileno())]
        path = os.pathsep.join(filter(None, sys.path))
        # What a worker prints is for people's eyes: stdout is for results.
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path} | self.environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
        )
        theirs.close()
        self._started += 1
        self._running[self._started] = _Process(process, ours)
        self._send(self._started, pickle.dumps(build))
        return self._started

    def ask(self, worker: int, call: Call) -> None:
        """See `Engine`."""
        self._send(worker, pickle.dumps(call))

    def _send(self, worker: int, content: bytes) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead, which `news` tells
            self._running[worker].pipe.send_bytes(content)

    def news(self, seconds: float) -> list[News]:
        """See `Engine`."""
        of = {each.pipe: worker for worker, each in self._running.items()}
        return [self._heard(of[pipe]) for pipe in wait(list(of), seconds) if isinstance(pipe, Connection)]

    def _heard(self, worker: int) -> News:
        try:
            kind, *content = self._running[worker].pipe.recv()
        except (EOFError, ConnectionResetError):
            return Lost(worker, self._how_it_ended(worker))
        if kind == "told":
            return Told(worker, *content)
        return Ready(worker) if kind == "ready" else Answer(worker, *content)

    def _how_it_ended(self, worker: int) -> str:
        ended = self._running.pop(worker)
        ended.pipe.close()
        status = ended.process.wait()
        if status == KILLED:
            return "a worker was killed, as the system does where memory runs out"
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
        return f"a worker ended {how}"

    def stop(self, worker: int) -> None:
        """See `Engine`."""
        gone = self._running.pop(worker)
        gone.pipe.close()
        gone.process.kill()
        gone.process.wait()

    def close(self) -> None:
        """See `Engine`."""
        for each in self._running.values():
            each.process.terminate()
        for each in self._running.values():
            each.pipe.close()
            try:
                each.process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                each.process.kill()
                each.process.wait()
        self._running.clear()
