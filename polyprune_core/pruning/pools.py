"""Which units share a budget, and what share of it is theirs.

With the scope `kind`, the units of each kind in all layers are one pool, as in the paper (arXiv 2406.10576). With
`global`, all units are one pool, weighted by their price. With `layer`, the units of each kind in each layer are one
pool. Protected layers stay whole, and more is removed from the other layers instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyprune_core.config.protect import Protect
from polyprune_core.pruning.space import MaskSpace

SCOPES: dict[str, Callable[[MaskSpace], Tensor]] = {
    "kind": lambda space: space.kind,
    "global": lambda space: torch.zeros_like(space.kind),
    "layer": lambda space: space.peers,
}


def pools(space: MaskSpace, scope: str) -> list[Tensor]:
    """Returns the unit indices of each pool of a scope."""
    label = SCOPES[scope](space)
    return [(label == value).nonzero().flatten() for value in distinct(label)]


def pool_labels(space: MaskSpace, scope: str) -> Tensor:
    """Returns (U,) int64, equal for units of one kind that share a budget."""
    labels: Tensor = torch.unique(SCOPES[scope](space) * len(space.kinds) + space.kind, return_inverse=True)[1]
    return labels


def protected(space: MaskSpace, protect: Protect) -> Tensor:
    """Returns (U,) bool: the units of layers that are left whole."""
    layers = [protect.covers(layer, space.layout.num_layers) for layer in range(space.layout.num_layers)]
    return torch.tensor(layers, dtype=torch.bool)[space.layer]


def keep_rates(space: MaskSpace, sparsity: float, scope: str, protect: Protect) -> Tensor:
    """Returns (U,) float64: the share that may be kept of the units in question that a unit has its budget with.

    In scope `layer` those of all layers of its kind, as they all make up alike for what is protected.
    """
    whole = protected(space, protect)
    if not whole.any():
        return torch.full((len(space),), 1 - sparsity, dtype=torch.float64)
    labels = SCOPES["kind" if scope == "layer" else scope](space)
    price, held = torch.bincount(labels, space.price), torch.bincount(labels, space.price * whole)
    rest = price - held
    rate = torch.where(rest > 0, ((1 - sparsity) * price - held) / rest, 1.0)
    return rate.clamp(min=0)[labels]


def distinct(labels: Tensor) -> list[int]:
    """Returns the distinct labels, ascending; counted, as sorting them all takes most of a selection's time."""
    return torch.bincount(labels).nonzero().flatten().tolist()
