"""What a granularity owes: units that divide the model's axes, cost something, and can be removed in every form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from polyprune_core.errors import PluginError, PolypruneError
from polyprune_core.models.describe import describe
from polyprune_core.models.layout import ModelLayout
from polyprune_core.plugins.registry import Registered
from polyprune_core.pruning.entries import entry_rows
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace, check_costs, check_layers
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import UnitGroup
from polyprune_core.testing.checking import check, global_randomness_unused, made, require, require_close
from polyprune_core.testing.tiny import FAMILIES, logits_of, tiny_model
from polyprune_core.utils.rng import generator

DIVIDES, USES_NO_RANDOMNESS = "units_divide_the_axes", "groups_use_no_global_randomness"
TRIED = (*FAMILIES, "mixtral")
# Float32 sums in another order, over three layers.
ROUNDING = 1e-5


def _models(plugin: Registered) -> Iterator[tuple[nn.Module, MaskSpace]]:
    for family, layout, groups in _found(plugin):
        yield tiny_model(family), MaskSpace(layout, groups, plugin.provider.name)


def _found(plugin: Registered) -> Iterator[tuple[str, ModelLayout, Sequence[UnitGroup]]]:
    """Yields the models that the granularity finds units in: it may be for mixtures alone, or for no mixture."""
    found = 0
    for family in TRIED:
        layout = describe(tiny_model(family))
        groups = made(plugin).groups(layout)
        if groups != []:
            found += 1
            yield family, layout, groups
    require(found, f"it finds no unit in any of {', '.join(TRIED)}")


def _masks(space: MaskSpace) -> Iterator[Tensor]:
    for share in (0.2, 0.5, 0.9):
        yield torch.rand(len(space), generator=generator(0, f"masks {share}")) < share


def _gate(model: nn.Module, space: MaskSpace, keep: Tensor) -> Tensor:
    with gated(model, space.layout, space.axis_keep(keep)):
        return logits_of(model)


def _compact(model: nn.Module, space: MaskSpace, keep: Tensor) -> Tensor:
    with Compactor(model, space.layout) as compactor, compactor.applied(space.axis_keep(keep)):
        return logits_of(model)


def _zeroed(model: nn.Module, space: MaskSpace, keep: Tensor) -> Tensor:
    for name, entries in space.axis_keep(keep).items():
        axis = space.layout.axis[name]
        for cut in axis.cuts:
            weight = model.get_parameter(cut.parameter).data.transpose(0, cut.dim)
            weight[entry_rows(cut, axis.size)[~entries].flatten()] = 0
    return logits_of(model)


@check("granularity", "builds_with_its_defaults")
def units_divide_the_axes(plugin: Registered) -> None:
    """Each axis that is named is divided among the units of one group: no entry twice, none left over."""
    for family, layout, groups in _found(plugin):
        try:
            MaskSpace(layout, groups, plugin.provider.name)
        except PolypruneError as error:
            raise AssertionError(f"the units of a tiny {family} cannot be used: {error}") from error


@check("granularity", "building_uses_no_global_randomness")
def groups_use_no_global_randomness(plugin: Registered) -> None:
    """Listing the units neither draws from nor seeds a generator that others share."""
    layout = describe(tiny_model())
    with global_randomness_unused():
        made(plugin).groups(layout)


def _require_accepted(plugin: Registered, check: Callable[..., None]) -> None:
    for family, layout, groups in _found(plugin):
        try:
            check(layout, groups, "the granularity")
        except PluginError as error:
            raise AssertionError(f"the units of a tiny {family} cannot be used: {error}") from error


@check("granularity", DIVIDES)
def every_unit_costs_something(plugin: Registered) -> None:
    """Removing any unit removes parameters."""
    _require_accepted(plugin, check_costs)


@check("granularity", DIVIDES)
def groups_follow_the_layers(plugin: Registered) -> None:
    """There is one group for each kind and layer, in layer order, and it owns axes of that layer only."""
    _require_accepted(plugin, check_layers)


@check("granularity", DIVIDES, USES_NO_RANDOMNESS)
def same_model_gives_the_same_units(plugin: Registered) -> None:
    """Asked again, also when made anew, it lists the same units in the same order."""
    layout = describe(tiny_model())
    granularity = made(plugin)
    first, again, anew = (list(g.groups(layout)) for g in (granularity, granularity, made(plugin)))
    require(first == again == anew, "the groups differ from one call to the next")


@check("granularity", DIVIDES)
def keeping_all_units_changes_no_bit(plugin: Registered) -> None:
    """With every unit kept, gated and compacted models give the bits of the untouched one."""
    for model, space in _models(plugin):
        keep, whole = torch.ones(len(space), dtype=torch.bool), logits_of(model)
        forms: dict[str, Callable[[nn.Module, MaskSpace, Tensor], Tensor]] = {"gated": _gate, "compacted": _compact}
        for name, form in forms.items():
            require(torch.equal(form(model, space, keep), whole), f"the {name} model is another with all units kept")


@check("granularity", DIVIDES)
def gating_equals_zeroing(plugin: Registered) -> None:
    """Multiplying by the mask gives the bits of a model whose removed weights are zero."""
    for model, space in _models(plugin):
        if any(space.layout.axis[name].router for name in space.axes):
            continue  # with zeros in its row a router still chooses an expert: removing it is more
        for keep in _masks(space):
            found, expected = _gate(model, space, keep), _zeroed(copy.deepcopy(model), space, keep)
            require(
                torch.equal(found, expected), f"with {int((~keep).sum())} of {len(space)} units removed they differ"
            )


@check("granularity", DIVIDES)
def gating_equals_compaction(plugin: Registered) -> None:
    """Multiplying by the mask gives what the smaller model gives, within rounding."""
    for model, space in _models(plugin):
        for keep in _masks(space):
            what = f"{int((~keep).sum())} of {len(space)} units removed"
            require_close(_compact(model, space, keep), _gate(model, space, keep), ROUNDING, what)
