"""Which rows of a parameter, and which input features of its reader, the entries of an axis own."""

from __future__ import annotations

import torch
from torch import Tensor

from polyprune_core.models.layout import Axis, Cut


def entry_rows(cut: Cut, size: int) -> Tensor:
    """Returns (size, width) int64: the places along the cut's dimension that each of `size` entries owns."""
    entry = torch.arange(size)
    first = cut.start + entry * cut.width + entry // cut.run * cut.gap
    return first[:, None] + torch.arange(cut.width)


def reader_columns(axis: Axis) -> Tensor:
    """Returns (size, columns) int64: the input features of what reads an axis that each of its entries owns.

    Raises:
        ModelError: nothing reads it.
    """
    if axis.stack is None:
        return entry_rows(axis.reader_cut, axis.size)
    places = torch.arange(axis.stack.maps * axis.stack.width).view(axis.stack.maps, axis.stack.width)
    return places if axis.stack.dim == 0 else places.T
