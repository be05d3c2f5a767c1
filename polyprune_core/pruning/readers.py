"""The readers that a selection leaves: what a repair in closed form works on."""

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
    """A linear module of F input features of which some stay, or of a mixture (a `stack`) one expert, or all as one.

    Attributes:
        module: its name in the dense model.
        axis: what `Calibration.moments` takes: an axis that it reads, NAME[i] where it is the expert i alone.
        routed: whether a router chooses what it takes in. It has no place for a bias.
        beside: of one expert, its place among those that stay, and the values (experts, out, kept) that all of these
            have in their common parameter; those of an expert become what it is given.
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
    cut: Cut | None
    stack: Stack | None = None
    beside: tuple[int, Tensor] | None = None

    @property
    def routed(self) -> bool:
        """Whether a router chooses what it takes in."""
        return self.stack is not None

    @property
    def whole(self) -> bool:
        """Whether all features stay."""
        return bool(self.keep.all())

    def updates(self, weight: Tensor | None = None, bias: Tensor | None = None) -> dict[str, Tensor]:
        """Returns a new weight (out, kept) and a new bias (out,) by name, as the model stores them.

        What one expert gives names the parameter of all, which holds what was given of the others before.

        Raises:
            ModelError: a bias for experts.
        """
        if self.stack is not None and bias is not None:
            raise ModelError(f"{self.module} are experts, which have no bias.")
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
