"""The readers that a selection leaves, whose weights a repair changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.models.layout import Axis, Cut, ModelLayout, Stack, expert_of
from polyprune_core.pruning.entries import reader_columns
from polyprune_core.pruning.space import MaskSpace


@dataclass(frozen=True)
class Reader:
    """A linear module that reads units: it has F input features, of which some stay.

    In a mixture of experts, a reader is one expert, or all experts of a layer together.

    Attributes:
        module: the name of the module in the dense model.
        axis: the name to give to `Calibration.moments`: an axis that the module reads, or NAME[i] for expert i alone.
        weight: (out, F) float32, the weight in the dense model.
        bias: (out,) float32, the bias in the dense model, or None.
        keep: (F,) bool, True for a feature that stays.
        units: (F,) int64, the unit that each feature belongs to, or -1 for none.
        cut: which part of the weight belongs to each entry of the axis; None for experts.
        stack: the parameter that holds the maps of all experts; None for an ordinary module.
        beside: for one expert, its place among the experts that stay, and the values (experts, out, kept) of the
            parameter that all of them share. `updates` writes into these values.
    """

    module: str
    axis: str
    weight: Tensor
    bias: Tensor | None
    keep: Tensor
    units: Tensor
    cut: Cut | None
    stack: Stack | None = None
    beside: tuple[int, Tensor] | None = None

    @property
    def routed(self) -> bool:
        """Whether a router chooses which tokens reach it. Such a reader cannot have a bias."""
        return self.stack is not None

    @property
    def whole(self) -> bool:
        """Whether all of its input features stay."""
        return bool(self.keep.all())

    def updates(self, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Returns a new weight (out, kept), a new bias (out,) or both by parameter name, as the model stores them.

        Experts share one parameter. The values for one expert are returned in this parameter, together with the values
        that were given for other experts before.

        Raises:
            ModelError: a bias was given for experts.
        """
        if self.stack is not None and bias is not None:
            raise ModelError(f"{self.module} holds experts, which cannot have a bias; give a weight only.")
        changed = {} if weight is None else self._stored(weight.float())
        return changed | ({} if bias is None else {f"{self.module}.bias": bias.float()})

    def _stored(self, weight: Tensor) -> dict[str, Tensor]:
        if self.stack is not None and self.beside is not None:
            place, values = self.beside
            values[place] = weight
            return {self.stack.parameter: values}
        if self.stack is not None:
            maps = int(self.keep.view(self.stack.maps, self.stack.width).any(dim=1).sum())
            return {self.stack.parameter: weight.unflatten(1, (maps, -1)).transpose(0, 1).contiguous()}
        assert self.cut is not None
        return {self.cut.parameter: weight.movedim(-1, self.cut.dim).contiguous()}


def left_readers(model: Any, space: MaskSpace, axis_keep: Mapping[str, Tensor], *, apart: bool) -> list[Reader]:
    """Returns the readers that a selection leaves anything to read, in the order of the layout.

    Of a mixture all experts as one, or with `apart` each of those that stay.
    """
    layout, units = space.layout, _units(space)
    by_reader: dict[str, list[Axis]] = {}
    for axis in layout.axis.values():
        if axis.is_read:
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
                own = reader_columns(axis)
                keep[own.flatten()] = axis_keep[axis.name].repeat_interleave(own.shape[1])
                owner[own.flatten()] = units[axis.name].repeat_interleave(own.shape[1])
        if not keep.any():
            continue
        bias = None if axes[0].stack else getattr(model.get_submodule(module), "bias", None)
        bias = bias.detach().float() if isinstance(bias, Tensor) else None
        cut = None if axes[0].stack else axes[0].reader_cut
        device = weight.device
        one = Reader(module, axes[0].name, weight, bias, keep.to(device), owner.to(device), cut, axes[0].stack)
        found.extend(_experts(one) if apart and one.routed else [one])
    return found


def _experts(reader: Reader) -> list[Reader]:
    """Returns the experts that stay of those that are one reader, each with the features that stay of its own."""
    assert reader.stack is not None
    maps = (reader.stack.maps, reader.stack.width)
    weights, keep, units = reader.weight.unflatten(1, maps), reader.keep.view(maps), reader.units.view(maps)
    left = keep.any(dim=1).nonzero().flatten().tolist()
    values = torch.stack([weights[:, number, keep[number]] for number in left])
    return [
        replace(
            reader,
            axis=expert_of(reader.axis, number),
            weight=weights[:, number],
            keep=keep[number],
            units=units[number],
            beside=(place, values),
        )
        for place, number in enumerate(left)
    ]


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
