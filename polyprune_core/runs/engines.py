"""The engine that a request names, and what of a machine each of its workers takes."""

from __future__ import annotations

import os

from polyprune_core.config.execution import Execution, Machine, bytes_of
from polyprune_core.models.placement import Placement
from polyprune_core.utils.crew import Engine


def engine_of(asked: Machine, device: str = "auto", talking: bool = False) -> Engine:
    """Returns the engine for workers of a request; `talking` ones tell of their progress.

    Raises:
        ConfigError: it is not installed, or there is no cluster where it was asked for.
    """
    if asked.executor == "local":
        from polyprune_core.utils.processes import Processes

        return Processes({"OMP_NUM_THREADS": str(threads_of(asked))})
    from polyprune_core.utils.ray_workers import RayWorkers, Share

    memory = bytes_of(asked.memory_per_cell) if asked.memory_per_cell else 0
    gpus = 0.0 if asked.gpus_per_cell is None and device == "cpu" else asked.gpus_per_cell
    return RayWorkers(asked.address, Share(asked.cpus_per_cell, gpus, memory), talking)


def placement_of(asked: Machine) -> Placement:
    """Returns where the weights of a request's models lie."""
    return Placement(asked.device_map == "auto", asked.memory_limits)


def workers_of(asked: Execution, engine: Engine) -> int:
    """Returns how many workers run cells: those asked for, or as many as fit beside the copies that they spread to."""
    room = getattr(engine, "room", 1)
    return asked.workers or max(1, room // (1 + asked.mask_workers))


def threads_of(asked: Machine) -> int:
    """Returns the threads that compute in each process: those asked for, or a fair part of the processor."""
    if asked.threads:
        return asked.threads
    if asked.executor == "ray":
        return max(1, int(asked.cpus_per_cell))
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, here // ((getattr(asked, "workers", None) or 1) * max(1, asked.mask_workers)))
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(told)) if told.isdecimal() and int(told) else share
