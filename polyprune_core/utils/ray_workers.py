"""Workers as actors of Ray: on this machine, or wherever the cluster has room."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from polyprune_core.errors import ConfigError, WorkerError, brief
from polyprune_core.utils.crew import Answer, Build, Call, Lost, News, Ready, Told
from polyprune_core.utils.worker import Resident

# Variables that decide what a worker finds and how it computes; a cluster's nodes have their own for all else.
PASSED_ON = ("POLYPRUNE_", "HF_", "OMP_", "MKL_")
OF_ONE_MACHINE = ("POLYPRUNE_CACHE", "HF_HOME", "HF_HUB_CACHE")

NOBODY = 0  # workers are counted from 1


@dataclass(frozen=True)
class Share:
    """What of a machine a worker takes; fractions of a GPU are given to several. `memory` in bytes, 0 for no claim.

    `gpus` None is a whole one where the cluster has any.
    """

    cpus: float = 1.0
    gpus: float | None = None
    memory: int = 0

    def options(self) -> dict[str, Any]:
        """Returns Ray's names for it."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus or 0} | ({"memory": self.memory} if self.memory else {})


class Mailbox:
    """Where workers put what they tell; one who waits for it is woken."""

    def __init__(self) -> None:
        import asyncio

        self.filled = asyncio.Event()
        self.letters: list[tuple[int, Any]] = []

    async def put(self, worker: int, message: Any) -> None:
        """Takes in a message."""
        self.letters.append((worker, message))
        self.filled.set()

    async def take(self) -> list[tuple[int, Any]]:
        """Returns all messages since the last time, when there are any."""
        await self.filled.wait()
        self.filled.clear()
        taken, self.letters = self.letters, []
        return taken


class Member(Resident):
    """An actor that is built and called."""

    def start(self, build: Build, worker: int, folder: str, mailbox: Any) -> BaseException | None:
        """Builds what lives here, in the `folder` that names of files are relative to, where it is there."""
        with suppress(OSError):
            os.chdir(folder)

        def tell(message: Any) -> None:
            import ray

            if mailbox:
                with suppress(ray.exceptions.RayError):
                    ray.get(mailbox.put.remote(worker, message))  # it is there before an answer is

        return self.build(build, tell)


class RayWorkers:
    """Actors that each take a `share`. Within a worker of Ray they belong to the same cluster as that.

    `talking`: whether what they tell is heard, which takes one actor more.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at `address`.
    """

    def __init__(self, address: str = "local", share: Share | None = None, talking: bool = False) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--executor ray needs Ray, which is not installed: pip install 'polyprune[ray]'.") from (
                error
            )
        self.ray: Any = ray
        self.own = not ray.is_initialized()
        if self.own:
            _join(ray, address)
        share = _settled(ray, share or Share())
        member: Any = ray.remote(Member)
        self._member = member.options(max_restarts=0, max_task_retries=0, **share.options())
        mailbox: Any = ray.remote(Mailbox)
        self._mailbox: Any = mailbox.options(num_cpus=0, max_restarts=-1).remote() if talking else None
        self._letters = self._mailbox.take.remote() if self._mailbox else None
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, tuple[int, bool]] = {}
        self._started = self._signs = 0
        self.room = _room(ray, share)

    def start(self, build: Build) -> int:
        """See `Engine`."""
        self._started += 1
        actor: Any = self._member.remote()
        self._actors[self._started] = actor
        self._asked[actor.start.remote(build, self._started, os.getcwd(), self._mailbox)] = (self._started, True)
        return self._started

    def ask(self, worker: int, call: Call) -> None:
        """See `Engine`."""
        self._asked[self._actors[worker].call.remote(call)] = (worker, False)

    def news(self, seconds: float) -> list[News]:
        """See `Engine`."""
        waited = [*self._asked, *([self._letters] if self._letters else [])]
        if not waited or not self.ray.wait(waited, num_returns=1, timeout=seconds)[0]:
            return []
        done, _ = self.ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0) if self._asked else ([], [])
        told = self._told(sign=bool(done)) if self._letters else []
        return [*told, *map(self._heard, done)]

    def _told(self, sign: bool) -> list[News]:
        """Returns what has been told; with `sign` all that was before now, for which a sign is sent after it."""
        self._signs += sign
        if sign:
            self._mailbox.put.remote(NOBODY, self._signs)
        told: list[News] = []
        while sign or self.ray.wait([self._letters], timeout=0)[0]:
            letters: list[tuple[int, Any]] = [(NOBODY, self._signs)]
            with suppress(self.ray.exceptions.RayError):  # its node is gone, and it is started on another
                letters = self.ray.get(self._letters)
            self._letters = self._mailbox.take.remote()
            sign = sign and (NOBODY, self._signs) not in [letter for letter in letters if letter[0] == NOBODY]
            told += [Told(worker, message) for worker, message in letters if worker != NOBODY]
        return told

    def _heard(self, asked: Any) -> News:
        worker, building = self._asked.pop(asked)
        try:
            found = self.ray.get(asked)
        except self.ray.exceptions.RayError as error:
            self._actors.pop(worker, None)
            return Lost(worker, f"a worker of Ray was lost: {brief(error, 160)}")
        if not building:
            return Answer(worker, *found)
        return Ready(worker) if found is None else Answer(worker, None, found)

    def stop(self, worker: int) -> None:
        """See `Engine`."""
        self.ray.kill(self._actors.pop(worker))
        self._asked = {asked: of for asked, of in self._asked.items() if of[0] != worker}

    def close(self) -> None:
        """See `Engine`."""
        for worker in list(self._actors):
            self.stop(worker)
        if self._mailbox:
            self.ray.kill(self._mailbox)
        if self.own:
            self.ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Starts Ray on this machine, or joins the cluster at an address."""
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    here: dict[str, Any] = {}
    if address == "local":
        passed |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        here = {"include_dashboard": False}
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: behind whatever else the machine does
    else:
        passed = {name: value for name, value in passed.items() if name not in OF_ONE_MACHINE}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)  # which Ray takes
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": passed}, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no Ray cluster at --address {address}: {brief(error, 200)} Start one with `ray start --head`, "
            "or give --address local for one on this machine."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)


def _settled(ray: Any, share: Share) -> Share:
    if share.gpus is not None:
        return share
    return replace(share, gpus=1.0 if ray.cluster_resources().get("GPU") else 0.0)


def _room(ray: Any, share: Share) -> int:
    """Returns how many shares the cluster holds.

    Raises:
        WorkerError: not one.
    """
    have = ray.cluster_resources()
    wanted = {"CPU": share.cpus, "GPU": share.gpus or 0.0, "memory": share.memory}
    room = min([int(have.get(name, 0) / each) for name, each in wanted.items() if each], default=1)
    if room < 1:
        told = ", ".join(f"{each:g} {name}" for name, each in wanted.items() if each)
        raise WorkerError(f"the Ray cluster has no room for one worker of {told}; ask for less a cell.")
    return room
