"""In how many threads torch computes: as many as asked, or one, where all are slower because others use the processor.

Threads wait for each other after every operation. A thread that another program keeps from running keeps all of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# About the products of a small model's layer, repeated for about a tenth of a second.
TOKENS, WIDTH, INNER, REPEATS, ROUNDS = 256, 576, 1536, 8, 3


@contextmanager
def computing_in(
    asked: int | None, tell: Callable[[str], None], seconds: Callable[[int], float] | None = None
) -> Iterator[None]:
    """Sets the threads that torch computes in while the block runs.

    Unless so many are `asked`, or OMP_NUM_THREADS says how many, the time of a little work decides between all and one;
    `tell` hears of it where that is one. `seconds(threads)` is that time.
    """
    before = torch.get_num_threads()
    try:
        _choose(asked, tell, seconds or _seconds)
        yield
    finally:
        torch.set_num_threads(before)


def _choose(asked: int | None, tell: Callable[[str], None], seconds: Callable[[int], float]) -> None:
    if asked:
        torch.set_num_threads(asked)
        return
    everything = torch.get_num_threads()
    if everything == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    turns = [(seconds(everything), seconds(1)) for _ in range(ROUNDS)]
    together, alone = (sum(times) for times in zip(*turns, strict=True))
    torch.set_num_threads(1 if alone < together else everything)
    if alone < together:
        tell(
            f"computing in 1 thread, which is {together / alone:.1f} times as fast here and now as {everything}: other "
            f"programs use the processor. --threads {everything} takes all."
        )


@torch.inference_mode()
def _seconds(threads: int) -> float:
    torch.set_num_threads(threads)
    hidden, weight = torch.ones(TOKENS, WIDTH), torch.ones(WIDTH, INNER)
    start = time.perf_counter()
    for _ in range(REPEATS):
        torch.nn.functional.silu(hidden @ weight) @ weight.T
    return time.perf_counter() - start
