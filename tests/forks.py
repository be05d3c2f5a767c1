"""Work in a fork of this process, which has its libraries loaded: a new interpreter takes seconds to load them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import NoReturn
from unittest import mock

import pytest

from polyprune_core.utils import processes, worker

forks = pytest.mark.skipif(
    sys.platform != "linux", reason="a fork of a process with torch in it is safe on Linux alone"
)

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals, pipes or paths")


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """Ends this fork with the status that `work` returns: nothing may go on to run the tests that are left."""
    try:
        os._exit(work() or 0)
    except BaseException:  # noqa: BLE001 - as above
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(70)


def in_a_fork(work: Callable[[], None]) -> None:
    """Does what changes a process for good; an exception there is a failure here."""
    pid = os.fork()
    if not pid:
        end_with(work)
    assert os.waitpid(pid, 0)[1] == 0


class _Forked:
    """Stands for `subprocess.Popen` of a worker."""

    def __init__(self, command: list[str], env: Mapping[str, str], **_: object) -> None:
        self.pid = os.fork()
        if not self.pid:
            import torch

            os.environ.update(env)
            os.dup2(2, 1)
            with torch.inference_mode(False), torch.enable_grad():  # whatever they are where it is started
                end_with(lambda: worker.main(int(command[-1])))

    def wait(self, seconds: float | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Has workers be forks of this process, where that is safe, in place of interpreters that load everything anew."""
    forked = SimpleNamespace(Popen=_Forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired)
    with mock.patch.object(processes, "subprocess", forked if sys.platform == "linux" else subprocess):
        yield
