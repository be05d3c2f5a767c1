"""A search of a model with 70 billion parameters on a cluster: planned from constants, and simulated.

    python benchmarks/cluster.py --output benchmarks/results/cluster.json

The simulation runs the supervisor that runs real workers, `Crew`, on an engine whose clock is made up: latencies and
failures are drawn from the distributions below. What a call takes at the driver comes from executors.py.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from polyprune_core.utils.crew import Answer, Build, Call, Crew, Lost, News, Ready
from polyprune_core.utils.environment import environment

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Assumed:
    """What is not measured here: a model like Llama 3 70B in bfloat16, H100s with 80 GB, prices and failures.

    Rates a GPU: `flops` of matrix products as they are reached, `memory` bytes a second; `load` bytes a second of
    reading weights. `units`: heads and channels. `usd` a GPU and hour. `hours_to_failure`: mean, of one worker.
    """

    parameters: float = 70.6e9
    bytes_a_parameter: int = 2
    layers: int = 80
    largest_sublayer: float = 3 * 8192 * 28672
    units: int = 80 * (8 + 28672)
    gpus_a_worker: int = 2
    flops: float = 4e14
    memory: float = 3.35e12
    load: float = 2e9
    start_seconds: float = 30.0
    usd: float = 2.5
    hours_to_failure: float = 50.0
    spread: float = 0.1
    stragglers: float = 0.01
    straggling: float = 5.0
    keep: float = 0.7


@dataclass(frozen=True)
class Work:
    """A search: `steps` of `masks` masks on `tokens` tokens each."""

    name: str
    steps: int
    masks: int
    tokens: int


OURS, PAPER = Work("our defaults", 50, 8, 2 * 128), Work("the paper's", 15_000, 2, 8 * 128)
WIDE = Work("our defaults with 1,000 masks a step", 50, 1000, 2 * 128)
PLANNED = [(OURS, 1), (OURS, 8), (PAPER, 1), (PAPER, 2), (WIDE, 8), (WIDE, 100), (WIDE, 1000)]


def seconds_a_mask(assumed: Assumed, tokens: int) -> float:
    """Returns what one mask takes on one worker, whose GPUs hold layers and run them in turn."""
    kept = assumed.keep * assumed.parameters
    compute, read = 2 * kept * tokens / assumed.flops, kept * assumed.bytes_a_parameter / assumed.memory
    copied = 2 * kept * assumed.bytes_a_parameter / assumed.memory  # kept rows are read and written once more
    return max(compute, read) + copied


def seconds_to_start(assumed: Assumed) -> float:
    """Returns what a worker takes until it answers."""
    return assumed.start_seconds + assumed.parameters * assumed.bytes_a_parameter / assumed.load


def planned(assumed: Assumed, work: Work, workers: int, call: float, arithmetic: float) -> dict[str, Any]:
    """Returns what a search takes: the masks of a step in rounds, or one call after another at the driver.

    `arithmetic`: seconds of a step at the driver that are neither.
    """
    mask = seconds_a_mask(assumed, work.tokens)
    rounds, calls = math.ceil(work.masks / workers) * mask, work.masks * call
    step = max(rounds, calls) + arithmetic
    hours = (work.steps * step + seconds_to_start(assumed)) / 3600
    parts = {"masks": rounds, "calls": calls, "the search's own arithmetic": arithmetic}
    return {
        "search": work.name,
        "workers": workers,
        "seconds_a_mask": mask,
        "seconds_of_masks": max(rounds, calls),
        "seconds_a_step": step,
        "masks_a_second": work.masks / step,
        "bytes_a_step": work.masks * (assumed.units // 8 + 8 * work.tokens + 5000),
        "hours": hours,
        "usd": hours * workers * assumed.gpus_a_worker * assumed.usd,
        "bound_by": max(parts, key=lambda part: parts[part]),
    }


class Simulated:
    """An engine in made-up time: `now` goes on as workers answer and are lost, and as the driver sends and reads."""

    def __init__(self, assumed: Assumed, mask: float, call: float, seed: int = 0) -> None:
        self.assumed, self.mask, self.call = assumed, mask, call
        self.rng, self.now, self.losses = random.Random(seed), 0.0, 0
        self._coming: list[tuple[float, int, News]] = []
        self._dies: dict[int, float] = {}
        self._started = self._sent = 0

    def start(self, build: Build) -> int:
        """See `Engine`."""
        self._started += 1
        ready = self.now + seconds_to_start(self.assumed) * self.rng.lognormvariate(0, 0.3)
        self._dies[self._started] = ready + self.rng.expovariate(1 / (3600 * self.assumed.hours_to_failure))
        self._come(ready, Ready(self._started))
        return self._started

    def ask(self, worker: int, call: Call) -> None:
        """See `Engine`."""
        self.now += self.call / 2
        slow = self.assumed.straggling if self.rng.random() < self.assumed.stragglers else 1.0
        done = self.now + self.mask * slow * self.rng.lognormvariate(0, self.assumed.spread)
        if self._dies[worker] < done:  # noticed when it is asked, at the soonest
            self.losses += 1
            self._come(max(self.now, self._dies[worker]), Lost(worker, "drawn"))
        else:
            self._come(done, Answer(worker))

    def _come(self, at: float, news: News) -> None:
        self._sent += 1
        heapq.heappush(self._coming, (at, self._sent, news))

    def news(self, seconds: float) -> list[News]:
        """See `Engine`."""
        at, _, news = heapq.heappop(self._coming)
        self.now = max(self.now, at) + self.call / 2
        return [news]

    def stop(self, worker: int) -> None:
        """See `Engine`."""

    def close(self) -> None:
        """See `Engine`."""


def simulated(assumed: Assumed, work: Work, workers: int, call: float, steps: int) -> dict[str, Any]:
    """Returns the step time of the real supervisor in made-up time, and what it took of real time itself."""
    engine = Simulated(assumed, seconds_a_mask(assumed, work.tokens), call)
    took: list[float] = []
    with Crew(engine, lambda tell: None, workers) as crew:
        list(crew.results([Call("start")] * workers))
        begun = engine.now
        clock = time.perf_counter()
        for _ in range(steps):
            before = engine.now
            answered = [done.index for done in crew.results([Call("loss")] * work.masks) if done.error is None]
            assert sorted(answered) == list(range(work.masks))
            took.append(engine.now - before)
        own = (time.perf_counter() - clock) / (steps * work.masks)
    return {
        "search": work.name,
        "workers": workers,
        "steps": steps,
        "hours_simulated": (engine.now - begun) / 3600,
        "seconds_a_step": statistics.mean(took),
        "median_seconds_a_step": statistics.median(took),
        "longest_step": max(took),
        "lost": engine.losses,
        "supervisor_seconds_a_call": own,
    }


def arithmetic_of(assumed: Assumed) -> tuple[float, float]:
    """Returns the seconds of a step that are no mask, and of each of its masks besides, on one processor.

    Drawing and weighing masks, and the order of all units, which a projection needs.
    """

    def least(masks: int) -> float:
        keep, found = torch.rand(assumed.units), []
        for _ in range(5):
            start = time.process_time()
            gradient = torch.zeros_like(keep)
            for _ in range(masks):
                gradient += (torch.rand(assumed.units) < keep).float() - keep
            (keep - 0.01 * gradient).sort()
            found.append(time.process_time() - start)
        return min(found)

    few, many = least(2), least(10)
    each = (many - few) / 8
    return few - 2 * each, each


def main() -> None:
    """Plans, simulates and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    torch.set_num_threads(1)
    assumed = Assumed()
    measured = json.loads((RESULTS / "executors.json").read_text("utf-8"))
    call = measured["calls"]["Ray"]
    weights = assumed.parameters * assumed.bytes_a_parameter
    record: dict[str, Any] = {"environment": environment(), "assumed": asdict(assumed)}
    fixed, each = arithmetic_of(assumed)
    record["measured"] = {"seconds_a_call": call, "arithmetic_a_step": fixed, "arithmetic_a_mask": each}
    record["memory"] = {
        "weights": weights,
        "buffers": assumed.largest_sublayer * assumed.bytes_a_parameter,
        "bytes_a_gpu": (weights + assumed.largest_sublayer * assumed.bytes_a_parameter) / assumed.gpus_a_worker,
    }
    record["plan"] = [planned(assumed, work, n, call, fixed + each * work.masks) for work, n in PLANNED]
    record["driver_bound_at_workers"] = seconds_a_mask(assumed, OURS.tokens) / call
    record["simulation"] = [
        simulated(assumed, work, n, call, steps)
        for work, n, steps in ((OURS, 1, 50), (OURS, 8, 2000), (PAPER, 2, 15000), (WIDE, 100, 50), (WIDE, 1000, 50))
    ]
    output.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
