"""How long a model takes to read a prompt (prefill) and to write each next token (decode), models turn by turn.

Models that are compared take turns on the same tokens, so that a drift of the machine touches all of them; a ratio is
the median of turn-by-turn ratios, with its quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyprune_core.utils.rng import generator


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarises at least two values."""
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, (low, high))


@dataclass(frozen=True)
class Load:
    """What is timed: `batch_size` prompts of `prompt_tokens`, then `new_tokens` one after the other.

    `beginning` are the first token ids of every prompt, counted in its length.
    """

    batch_size: int = 1
    prompt_tokens: int = 128
    new_tokens: int = 16
    turns: int = 5
    warm_up: int = 1
    beginning: tuple[int, ...] = ()


@dataclass(frozen=True)
class Seconds:
    """One turn of one model: reading the prompt, and writing one token on the average."""

    prefill: float
    decode: float


def take_turns(models: Sequence[Any], load: Load) -> list[list[Seconds]]:
    """Returns each model's `load.turns` timed turns; before them come `load.warm_up` untimed rounds."""
    vocabulary = min(int(model.config.vocab_size) for model in models)
    ids = torch.randint(vocabulary, (load.batch_size, load.prompt_tokens), generator=generator(0, "latency tokens"))
    ids[:, : len(load.beginning)] = torch.tensor(load.beginning, dtype=ids.dtype)[: load.prompt_tokens]
    rounds = [[request(model, ids, load.new_tokens) for model in models] for _ in range(load.warm_up + load.turns)]
    return [list(turns) for turns in zip(*rounds[load.warm_up :], strict=True)]


def ratios(model: Sequence[Seconds], reference: Sequence[Seconds], of: Callable[[Seconds], float]) -> Spread:
    """Returns the turn-by-turn ratios of one model's times to another's."""
    return Spread.of([of(a) / of(b) for a, b in zip(model, reference, strict=True)])


@torch.inference_mode()
def request(model: Any, ids: Tensor, new_tokens: int) -> Seconds:
    """Times one batch of prompts `ids` (B, T) read and `new_tokens` tokens written greedily with a KV cache."""
    ids = ids.to(model.device)
    with _clock(model.device) as prefill:
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    with _clock(model.device) as decode:
        for _ in range(new_tokens):
            token = output.logits[:, -1:].argmax(dim=-1)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    return Seconds(prefill[0], decode[0] / max(new_tokens, 1))


@contextmanager
def _clock(device: torch.device) -> Iterator[list[float]]:
    """Yields a list that holds the block's seconds afterwards, the device's own work included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: list[float] = []
    wait()
    start = time.perf_counter()
    yield seconds
    wait()
    seconds.append(time.perf_counter() - start)
