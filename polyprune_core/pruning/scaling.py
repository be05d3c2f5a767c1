"""Scores made comparable across layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyprune_core.pruning.space import MaskSpace


def zscore(values: Tensor, labels: Tensor, less: int = 0) -> Tensor:
    """Returns (U,): each value minus the mean of its label, over their standard deviation.

    Its variance divides by how many values a label has, `less` this many.
    """
    count = torch.bincount(labels).double().clamp(min=1)
    mean = torch.bincount(labels, values.double()) / count
    centred = values.double() - mean[labels]
    std = (torch.bincount(labels, centred.square()) / (count - less).clamp(min=1)).sqrt()
    return (centred / (std + 1e-8 * mean.abs() + 1e-300)[labels]).float()


SCALES: dict[str, Callable[[Tensor, MaskSpace], Tensor]] = {
    "raw": lambda values, _: values,
    "zscore": lambda values, space: zscore(values, space.peers),
    "per-parameter": lambda values, space: (values / space.cost).float(),
}


def scale(values: Tensor, space: MaskSpace, how: str) -> Tensor:
    """Returns scores (U,) made comparable across layers: `raw`, `zscore` per layer and kind, or `per-parameter`."""
    return SCALES[how](values, space)
