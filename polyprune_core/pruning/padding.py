"""Pads a smaller model with entries of zeros, for formats that hold certain widths only. It computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.models.layout import Axis
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Remains, compact_items
from polyprune_core.pruning.types import Scores, Selection, UnitGroup

if TYPE_CHECKING:
    from polyprune_core.pruning.pruned_model import PrunedModel


def padded(pruned: PrunedModel, sizes: Mapping[str, int]) -> PrunedModel:
    """Returns the model with zeros in place of some removed entries, so that axes have the sizes given.

    All parameters of an added entry are zero. If a sublayer was removed as a whole and gets entries back, its other
    parameters are zero too, except its norm, which is the one of the dense model. Blocks of entries are padded evenly.
    The units of the model that is returned are single entries of the axes.

    Args:
        pruned: the smaller model.
        sizes: maps the name of an axis to its number of entries, the kept ones and the zeros together. If a view
            divides an axis (`ModelLayout.divided`), the view is named. Other axes stay as they are.

    Raises:
        ModelError: a size is smaller than what is kept of the axis, larger than in the dense model, or not the same for
            all blocks; or a router would choose among entries of zeros.
    """
    layout, before = pruned.layout, pruned.axis_keep()
    axes = layout.divided(before)
    after = {axis.name: before.get(axis.name, torch.ones(axis.size, dtype=torch.bool)).clone() for axis in axes}
    for name, size in sizes.items():
        _fill(layout.axis[name], after[name], size)
    space = MaskSpace(layout, [UnitGroup(a.kind, a.layer, a.size, ((a.name, 1),)) for a in axes], "entry")
    keep = torch.cat([after[axis.name] for axis in axes])
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    updates = dict(pruned.updates) | dict(_with_zeros(pruned, before, after))
    scores = Scores(keep.float(), pruned.scores.source)
    return dataclasses.replace(pruned, space=space, selection=selection, scores=scores, policy=None, updates=updates)


def _fill(axis: Axis, keep: Tensor, size: int) -> None:
    """Has `size` of an axis' entries stay, in `keep` (entries,) bool: the first of those that are gone come back."""
    missing, why = size - int(keep.sum()), ""
    if missing > 0 and axis.router:
        why = "; a router would choose among rows of zeros"
    elif missing > 0 and missing % axis.blocks:
        why = f"; its {axis.blocks} blocks are equally large"
    if why or missing < 0 or size > len(keep):
        raise ModelError(
            f"{axis.name} keeps {int(keep.sum())} of {len(keep)} entries and cannot be padded to {size}{why}; choose "
            "another format, or a granularity that leaves this axis whole."
        )
    for block in keep.view(axis.blocks, -1):
        block[(~block).nonzero().flatten()[: missing // axis.blocks]] = True


def _with_zeros(
    pruned: PrunedModel, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters that are larger than what was left of them, or were gone."""
    model, layout = pruned.base.model, pruned.layout
    left, wanted = (Remains.of(model, layout, keep) for keep in (before, after))
    had = dict(compact_items(model, layout, before, pruned.updates))
    norms = {name for axis in layout.axes for name in axis.module_only}
    for name, dense in model.named_parameters():
        shape = wanted.shape(name, dense)
        if shape is None or name in norms or (name in had and had[name].shape == shape):
            continue
        larger = torch.zeros(shape, dtype=dense.dtype, device=dense.device)
        if name in had:
            places = [torch.arange(size) for size in shape]
            for dim, rows in wanted.stays[name].items():
                places[dim] = left.stays[name][dim][rows].nonzero().flatten()
            larger[torch.meshgrid(*places, indexing="ij")] = had[name]
        yield name, larger
