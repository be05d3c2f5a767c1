"""The units that can be removed, what each of them costs, and which entries of axes it owns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.pruning.entries import entry_rows, reader_columns
from polyprune_core.pruning.types import UnitGroup


class MaskSpace:
    """All units of one search in a fixed order: group by group, and unit by unit within a group.

    Attributes:
        layout: the axes of the model.
        groups: the units, as `Granularity.groups` returned them.
        cost: (U,) float64, the number of parameters that are removed with each unit.
        price: (U,) float64, what a budget counts for each unit: its cost, unless `priced` gave it another currency.
        floors: for each group the fewest of its units that the model's code runs with.
        group: (U,) int64, the index of each unit's group in `groups`.
        kind: (U,) int64, the index of each unit's kind in `kinds`.
        layer: (U,) int64, the number of each unit's decoder layer.
        peers: (U,) int64, equal for units whose scores are compared within a layer, which are those of one group. Units
            that are alone in their group (whole sublayers or layers) are compared with all others of their kind.
    """

    def __init__(self, layout: ModelLayout, groups: Sequence[UnitGroup], name: str = "", if_none: str = "") -> None:
        """Takes units by groups; `if_none` is what to say of a model that has none.

        Raises:
            ConfigError: there is no unit, or two groups cut the same entries.
            PluginError: a span lies outside of the layout.
        """
        self.layout, self.groups, self.name = layout, tuple(groups), name
        if not groups:
            raise ConfigError(_no_unit(layout, name, if_none))
        _require_apart(layout, self.groups)
        for group in self.groups:
            check_division(layout, [group], f"granularity {group.kind!r}")
        self.kinds = tuple(dict.fromkeys(group.kind for group in self.groups))
        counts = torch.tensor([group.count for group in self.groups])
        self.offsets = (counts.cumsum(0) - counts).tolist()
        self.group = torch.repeat_interleave(torch.arange(len(self.groups)), counts)
        self.kind = torch.tensor([self.kinds.index(group.kind) for group in self.groups])[self.group]
        self.layer = torch.tensor([group.layer for group in self.groups])[self.group]
        alone = (counts == 1)[self.group]
        self.peers = torch.where(alone, len(self.groups) + self.kind, self.group)
        self.cost = torch.cat([_unit_costs(layout, group) for group in self.groups])
        self.price = self.cost
        self.floors = tuple(_floor(layout, group) for group in self.groups)

    def __len__(self) -> int:
        return len(self.group)

    @cached_property
    def total_cost(self) -> int:
        """The number of prunable parameters: how many are removed if every unit is."""
        return int(self.cost.sum())

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes that the units own, in the order of the units."""
        return tuple(name for group in self.groups for name, _ in group.spans)

    def priced(self, price: Tensor) -> MaskSpace:
        """Returns the same units with another price (U,); a price of 0 is for units that the budget does not count."""
        other = copy.copy(self)
        other.price = price.double()
        return other

    def slices(self) -> list[slice]:
        """Returns for each group where its units are in a vector (U,)."""
        return [slice(start, start + group.count) for start, group in zip(self.offsets, self.groups, strict=True)]

    def axis_keep(self, keep: Tensor) -> dict[str, Tensor]:
        """Returns (size,) bool by axis name: which entries of each axis stay if the units in `keep` (U,) bool stay."""
        kept: dict[str, Tensor] = {}
        for where, group in zip(self.slices(), self.groups, strict=True):
            for axis, _ in group.spans:
                kept[axis] = keep[where][group.owner(axis, self.layout.axis[axis].size)]
        return kept

    def sum_entries(self, values: dict[str, Tensor]) -> Tensor:
        """Returns (U,) float32: for each unit the sum of values over the entries that it owns.

        `values` maps the name of every axis to a value for each entry, (size,).
        """
        parts = []
        for group in self.groups:
            total = torch.zeros(group.count, dtype=torch.float64)
            for axis, _ in group.spans:
                owner = group.owner(axis, self.layout.axis[axis].size)
                total.index_add_(0, owner, values[axis].to("cpu", torch.float64))
            parts.append(total)
        return torch.cat(parts).float()

    def cached_values(self) -> Tensor:
        """Returns (U,) float32: how many numbers each unit adds to the KV cache for every token."""
        axes = [self.layout.axis[name] for name in self.axes]
        return self.sum_entries({axis.name: torch.full((axis.size,), float(axis.cached_values)) for axis in axes})

    def sum_weights(self, importance: Callable[[str], Tensor]) -> Tensor:
        """Returns (U,) float32: for each unit the sum of importance over all weights that it owns.

        `importance` is called with the name of a parameter, and returns a tensor of that parameter's shape. A dimension
        that is not cut may have size 1 instead, and then holds the sums over that dimension.
        """

        def entries(axis: Axis) -> Tensor:
            total = torch.zeros(axis.size, dtype=torch.float64)
            for cut in axis.cuts:
                total += _blocks(importance(cut.parameter), cut, axis.size).sum(dim=1, dtype=torch.float64).cpu()
            return total

        return self.sum_entries({name: entries(self.layout.axis[name]) for name in self.axes})

    def reader_weight(self, model: nn.Module, axis: str) -> Tensor:
        """Returns (out, in) float32: the weight of the module that reads the axis named `axis`.

        A weight that the model stores transposed is turned round. The maps of experts are put side by side.

        Raises:
            ModelError: the axis has no reader.
        """
        stack = self.layout.axis[axis].stack
        if stack is not None:
            return model.get_parameter(stack.parameter).detach().float().transpose(0, 1).flatten(1)
        cut = self.layout.axis[axis].reader_cut
        return model.get_parameter(cut.parameter).detach().float().movedim(cut.dim, -1)

    def sum_columns(self, model: nn.Module, importance: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Returns (U,) float32: for each unit the sum of importance over the columns of readers that it owns.

        `importance` is called with the name of an axis and its reader's weight (out, in) float32. It returns (in,).
        """

        def entries(axis: Axis) -> Tensor:
            columns = importance(axis.name, self.reader_weight(model, axis.name))
            return columns[reader_columns(axis).to(columns.device)].sum(dim=1)

        return self.sum_entries({name: entries(self.layout.axis[name]) for name in self.axes})

    def sum_products(self, products: Callable[[str], Tensor]) -> Iterator[Tensor]:
        """Yields (count, count) float32 for each group: for every pair of its units, a sum over pairs of columns.

        `products` is called with the name of an axis. It returns (in, in), a value for each pair of columns of the
        axis' reader.
        """
        for group in self.groups:
            total = torch.zeros(group.count, group.count)
            for name, _ in group.spans:
                axis = self.layout.axis[name]
                pairs = products(name).cpu()
                owner = column_owner(group, axis, len(pairs))
                own = (owner >= 0).nonzero().flatten()
                if len(own) < len(owner):
                    pairs, owner = pairs[own][:, own], owner[own]
                rows = torch.zeros(group.count, len(pairs)).index_add_(0, owner, pairs)
                total.index_add_(1, owner, rows)
            yield total


def said_of(space: MaskSpace) -> Iterator[str]:
    """Yields what a user should know of units that a name does not say: their kinds, and units that are sublayers."""
    if set(space.kinds) != set(space.name.split("+")):
        counts = {kind: sum(g.count for g in space.groups if g.kind == kind) for kind in space.kinds}
        yield f"{space.name} is {' and '.join(f'{count:,} units of {kind}' for kind, count in counts.items())}"
    for kind in space.kinds:
        groups = [g for g in space.groups if g.kind == kind and g.count == 1]
        axes = [space.layout.axis[name] for g in groups for name, span in g.spans if isinstance(span, int)]
        if axes and all(axis.size == 1 and axis.kind != kind for axis in axes):
            yield (
                f"{len(groups)} layers have one unit of {kind} each: a budget for {kind} empties whole {axes[0].kind} "
                "sublayers. A granularity that divides them is finer: query-head, or auto"
            )


def column_owner(group: UnitGroup, axis: Axis, features: int) -> Tensor:
    """Returns (F,) int64: the unit that owns each of F input features of what reads an axis, -1 where none does."""
    columns = reader_columns(axis)
    owner = torch.full((features,), -1)
    owner[columns.flatten()] = group.owner(axis.name, axis.size).repeat_interleave(columns.shape[1])
    return owner


def _span(cut: Cut, size: int) -> slice:
    return slice(cut.start, cut.start + size * cut.width)


def _blocks(values: Tensor, cut: Cut, size: int) -> Tensor:
    """Returns (size, …): what each of `size` entries owns of a tensor shaped like the parameter that is cut."""
    rows = values.movedim(cut.dim, 0)
    owned = rows[entry_rows(cut, size)] if cut.gap else rows[_span(cut, size)]
    return owned.reshape(size, -1)


def _unit_costs(layout: ModelLayout, group: UnitGroup) -> Tensor:
    total = torch.zeros(group.count, dtype=torch.float64)
    for name, _ in group.spans:
        axis = layout.axis[name]
        owner = group.owner(name, axis.size)
        total += torch.bincount(owner, minlength=group.count) * float(axis.entry_parameters)
        if group.count == 1:
            total += axis.module_parameters
    return total


def _floor(layout: ModelLayout, group: UnitGroup) -> int:
    """Returns how many units of a group have to stay so that each axis keeps `at_least` entries; 0 for one alone."""
    needed = [
        -(-layout.axis[name].at_least // (span if isinstance(span, int) else min(map(len, span))))
        for name, span in group.spans
    ]
    return min(group.count, max(needed, default=0)) if group.count > 1 else 0


def check_division(layout: ModelLayout, groups: Sequence[UnitGroup], who: str) -> None:
    """Raises PluginError unless each axis that is named is divided among the units of one group."""
    for group in groups:
        for name, per_unit in group.spans:
            axis = layout.axis.get(name)
            if axis is None:
                raise PluginError(f"{who} names axis {name!r}, which this model does not have.")
            if not isinstance(per_unit, int):
                listed = sorted(entry for entries in per_unit for entry in entries)
                if len(per_unit) != group.count or listed != list(range(axis.size)):
                    raise PluginError(
                        f"{who} lists {len(listed)} entries of {name} for {len(per_unit)} units; each of its "
                        f"{axis.size} entries belongs to one of {group.count} units."
                    )
            elif per_unit < 1 or -(-axis.size // per_unit) != group.count:
                raise PluginError(
                    f"{who} cuts the {axis.size} entries of {name} into {group.count} units of {per_unit}; "
                    f"{-(-axis.size // max(per_unit, 1))} are needed."
                )


def check_costs(layout: ModelLayout, groups: Sequence[UnitGroup], who: str) -> None:
    """Raises PluginError if there is a unit whose removal removes no parameter."""
    for group in groups:
        free = int((_unit_costs(layout, group) <= 0).sum()) if group.count > 0 else 0
        if free or group.count < 1:
            raise PluginError(
                f"{who} has {group.count} units of kind {group.kind!r} in layer {group.layer}, of which {free} own "
                "nothing and cost nothing; every unit has to own entries of an axis."
            )


def check_layers(layout: ModelLayout, groups: Sequence[UnitGroup], who: str) -> None:
    """Raises PluginError unless each group owns axes of the layer it names, and those of a kind are in layer order."""
    last: dict[str, int] = {}
    for group in groups:
        owned = sorted({layout.axis[name].layer for name, _ in group.spans} - {group.layer})
        if owned:
            raise PluginError(f"{who} has a group of layer {group.layer} that owns axes of layers {owned}.")
        if group.layer <= last.get(group.kind, -1):
            raise PluginError(
                f"{who} lists a group of kind {group.kind!r} and layer {group.layer} after one of layer "
                f"{last[group.kind]}; one group a layer, in layer order, is needed."
            )
        last[group.kind] = group.layer


def _no_unit(layout: ModelLayout, name: str, why: str) -> str:
    mixers = f"{', '.join(layout.mixers)} cannot be cut" if layout.mixers else ""
    reasons = "; ".join(filter(None, (mixers, why)))
    return (
        f"granularity {name!r} finds no unit in this model{': ' if reasons else ''}{reasons}. Choose another one; "
        "polyprune models check MODEL lists what there is."
    )


def _require_apart(layout: ModelLayout, groups: Sequence[UnitGroup]) -> None:
    owner: dict[str, str] = {}
    for group in groups:
        for span, _ in group.spans:
            divided = layout.axis[span].of if span in layout.axis else ""
            divided = divided or span
            if owner.get(divided) == group.kind:
                raise ConfigError(f"granularity {group.kind!r} is given twice; give it once.")
            if divided in owner:
                raise ConfigError(
                    f"granularities {owner[divided]!r} and {group.kind!r} both remove {divided}; choose one of the "
                    "two, or prune twice: first with one of them, then the model that is written with the other."
                )
            owner[divided] = group.kind
