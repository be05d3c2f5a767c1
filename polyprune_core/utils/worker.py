"""What runs in a worker: one object, built once, whose methods are called; and the process that a worker here is."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from polyprune_core.errors import PolypruneError, WorkerError, brief
from polyprune_core.utils.crew import Build, Call, Tell


class Resident:
    """What lives in a worker, once it is built."""

    made: Any = None

    def build(self, build: Build, tell: Tell) -> BaseException | None:
        """Builds it; returns the error where that cannot be done."""
        try:
            self.made = build(tell)
        except Exception as error:  # noqa: BLE001 - whatever a model or a plugin raises
            return portable(error)
        return None

    def call(self, call: Call) -> tuple[Any, BaseException | None]:
        """Returns what the call returns, and the error where it raises one."""
        try:
            return getattr(self.made, call.method)(*call.arguments), None
        except Exception as error:  # noqa: BLE001 - whatever a model or a plugin raises
            return None, portable(error)


def portable(error: BaseException) -> BaseException:
    """Returns a user error as it is, and any other as one that every process can read."""
    if isinstance(error, PolypruneError):
        return error
    sys.stderr.write("".join(traceback.format_exception(error)))
    return WorkerError(f"{type(error).__name__} in a worker: {brief(error)}")


def main(descriptor: int) -> None:
    """Answers calls over a pipe until it closes; the process ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: who started us ends us
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    pipe, resident = Connection(descriptor), Resident()
    try:
        build = pickle.loads(pipe.recv_bytes())
        error = resident.build(build, lambda message: pipe.send(("told", message)))
        pipe.send(("answer", None, error) if error else ("ready",))
        while True:
            pipe.send(("answer", *resident.call(pipe.recv())))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
