"""How the parameters of a search move: the step, how long it is, and the mean of the last ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

OPTIMIZERS: dict[str, Callable[[list[Tensor], float], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    "adam": lambda parameters, rate: torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95)),
}


def stepped(
    name: str, parameters: Tensor, direction: Tensor, rate: float, memory: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Returns parameters (P,) after one step against `direction` (P,), and what the optimizer remembers of it.

    A parameter without a direction stays, whatever momentum says.
    """
    moved = parameters.clone()
    optimizer = OPTIMIZERS[name]([moved], rate)
    if memory:
        optimizer.state[moved] = {key: value.clone() for key, value in memory.items()}
    moved.grad = direction.to(moved.dtype)
    optimizer.step()
    kept = {key: value for key, value in optimizer.state[moved].items() if isinstance(value, Tensor)}
    return torch.where(direction == 0, parameters, moved.detach()), kept


def cosine(rate: float, step: int, steps: int) -> float:
    """Returns the learning rate of a step: from `rate` at the first to 0 after the last."""
    return rate * (1 + math.cos(math.pi * step / steps)) / 2


def ramp(sparsity: float, step: int, steps: int, warmup: float) -> float:
    """Returns the sparsity after a step: rises to `sparsity` along a cubic in the first `warmup` of all steps.

    Zhu and Gupta 2017, arXiv 1710.01878, eq. 1, from zero.
    """
    ahead = 1 - min(1.0, (step + 1) / (warmup * steps)) if warmup else 0.0
    return sparsity * (1 - ahead**3)
