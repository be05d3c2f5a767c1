"""Which rows of a parameter the entries of an axis own."""

from __future__ import annotations

import torch
from torch import Tensor

from polyprune_core.models.layout import Cut


def entry_rows(cut: Cut, size: int) -> Tensor:
    """Returns (size, width) int64: the places along the cut's dimension that each of `size` entries owns."""
    entry = torch.arange(size)
    first = cut.start + entry * cut.width + entry // cut.run * cut.gap
    return first[:, None] + torch.arange(cut.width)
