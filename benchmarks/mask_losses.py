"""Losses under masks: run through the model, or read off a table of all masks of a few units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyprune_core.evaluation.losses import Metered, Objective, token_losses
from polyprune_core.evaluation.windows import search_batches
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.utils.rng import generator


@dataclass(frozen=True)
class Problem:
    """Masks in, losses out: `objective` on batches of two of `windows` (N, T), as a search reads them."""

    name: str
    space: MaskSpace
    objective: Any
    windows: Tensor
    registry: Registry

    def batches(self, purpose: str) -> Iterator[Tensor]:
        """Yields batches (2, T), others for every purpose."""
        return search_batches(self.windows, 2, generator(0, purpose).initial_seed())

    def window_losses(self, masks: Tensor, windows: Tensor) -> Tensor:
        """Returns (M, W): the loss of each of `windows` (W, T) under each of `masks` (M, U)."""
        if isinstance(self.objective, Table):
            return torch.stack([self.objective.losses(masks, window) for window in windows], dim=1)
        return window_losses(self.objective.compactor, self.space, masks, windows)


class Table(Metered):
    """The losses of all masks of a few units on all windows (2 ** U, N), read off instead of run."""

    def __init__(self, losses: Tensor, objective: Objective, windows: Tensor) -> None:
        super().__init__()
        self.table, self.objective, self.windows = losses, objective, windows
        self.space, self.vocabulary = objective.space, objective.vocabulary

    def losses(self, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns (K,) mean losses of masks (K, U) on the windows numbered `ids` (B, 1)."""
        return self.table[masks.long() @ (2 ** torch.arange(len(self.space)))][:, ids.flatten()].mean(dim=1)

    def gradients(self, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns losses (K,) and gradients (K, U) by gates (K, U), which no table holds."""
        return self.objective.gradients(gates, self.windows[ids.flatten()])

    def gradient(self, policy: Policy) -> Tensor:
        """Returns (U,): the exact gradient of the expected loss with respect to keep_prob."""
        masks = all_masks(len(self.space))
        s = policy.keep_prob.double()
        probability = torch.where(masks, s, 1 - s).prod(dim=1)
        score = replace(policy, keep_prob=s).score_function(MaskBatch(masks))
        gradient: Tensor = (probability * self.table.mean(dim=1).double()) @ score
        return gradient


def all_masks(units: int) -> Tensor:
    """Returns (2 ** U, U) bool: row i holds the binary digits of i, the lowest first."""
    return (torch.arange(2**units)[:, None] >> torch.arange(units)) % 2 == 1


@torch.inference_mode()
def window_losses(compactor: Compactor, space: MaskSpace, masks: Tensor, windows: Tensor) -> Tensor:
    """Returns (M, W) float32: the mean loss of each window (W, T) under each mask (M, U)."""
    rows = []
    for mask in masks:
        with compactor.applied(space.axis_keep(mask)) as model:
            rows.append(torch.cat([token_losses(model, ids).mean(dim=1) for ids in windows.split(8)]))
    return torch.stack(rows)
