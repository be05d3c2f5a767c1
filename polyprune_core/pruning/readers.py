"""The readers that a selection leaves: what a repair in closed form works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.pruning.space import MaskSpace


@dataclass(frozen=True)
class Reader:
    """A linear module of F input features of which some stay.

    Attributes:
        module: its name in the dense model.
        axis: an axis that it reads, which `Calibration.moments` takes.
        weight: (out, F) float32, that of the dense model.
        bias: (out,) float32, that of the dense model, or None.
        keep: (F,) bool, the features that stay.
        units: (F,) int64, the unit that each feature belongs to, -1 where there is none.
    """

    module: str
    axis: str
    weight: Tensor
    bias: Tensor | None
    keep: Tensor
    units: Tensor
    cut: Cut

    @property
    def whole(self) -> bool:
        """Whether all features stay."""
        return bool(self.keep.all())

    def updates(self, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Returns a new weight (out, kept) and a new bias (out,) by name, as the model stores them."""
        changed = {} if weight is None else {self.cut.parameter: weight.float().movedim(-1, self.cut.dim).contiguous()}
        return changed | ({} if bias is None else {f"{self.module}.bias": bias.float()})


def left_readers(model: Any, space: MaskSpace, axis_keep: Mapping[str, Tensor]) -> list[Reader]:
    """Returns the readers that a selection leaves anything to read, in the order of the layout."""
    layout, units = space.layout, _units(space)
    by_reader: dict[str, list[Axis]] = {}
    for axis in layout.axes:
        if axis.reader is not None:
            by_reader.setdefault(axis.reader_module, []).append(axis)
    found = []
    for module, axes in by_reader.items():
        if _gone(layout, module, axis_keep):
            continue
        weight = space.reader_weight(model, axes[0].name)
        keep = torch.ones(weight.shape[1], dtype=torch.bool)
        owner = torch.full((weight.shape[1],), -1)
        for axis in axes:
            if axis.name in axis_keep:
                own = slice(axis.reader_cut.start, axis.reader_cut.start + axis.size * axis.reader_width)
                keep[own] = axis_keep[axis.name].repeat_interleave(axis.reader_width)
                owner[own] = units[axis.name].repeat_interleave(axis.reader_width)
        if not keep.any():
            continue
        bias = getattr(model.get_submodule(module), "bias", None)
        bias = bias.detach().float() if isinstance(bias, Tensor) else None
        device, cut = weight.device, axes[0].reader_cut
        found.append(Reader(module, axes[0].name, weight, bias, keep.to(device), owner.to(device), cut))
    return found


def _gone(layout: ModelLayout, module: str, axis_keep: Mapping[str, Tensor]) -> bool:
    """Whether a sublayer that is removed as a whole takes the reader along."""
    emptied = [layout.axis[name].module for name, keep in axis_keep.items() if not keep.any()]
    return module in emptied or module.startswith(tuple(f"{name}." for name in emptied))


def _units(space: MaskSpace) -> dict[str, Tensor]:
    """Returns, by axis, the unit (size,) that owns each entry."""
    return {
        name: offset + group.owner(name, space.layout.axis[name].size)
        for offset, group in zip(space.offsets, space.groups, strict=True)
        for name, _ in group.spans
    }
