"""The smaller model as a copy of the dense one, whatever its class: for models whose code only they themselves have."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from polyprune_core.models.layout import Axis, ModelLayout
from polyprune_core.models.modeling_polyprune import Missing, fit
from polyprune_core.pruning.sublayer import counts_of, width_out
from polyprune_core.pruning.surgery import compact_state_dict


def cut_copy(
    model: Any,
    layout: ModelLayout,
    axis_keep: Mapping[str, Tensor],
    updates: Mapping[str, Tensor] = MappingProxyType({}),
) -> Any:
    """Returns the model with the kept slices of each parameter; class, configuration and number of layers stay.

    Parameters that nothing was done to are the dense model's own. `axis_keep` and `updates` as in
    `surgery.compact_state_dict`.
    """
    state = compact_state_dict(model, layout, axis_keep, updates)
    copied: dict[int, Any] = {}
    for name, parameter in model.named_parameters():
        kept = state.get(name, parameter)
        copied[id(parameter)] = (
            parameter
            if kept.shape == parameter.shape and name not in updates
            else nn.Parameter(kept, requires_grad=parameter.requires_grad)
        )
    smaller = copy.deepcopy(model, copied)
    for name in updates.keys() - dict(model.named_parameters()).keys():
        module, _, leaf = name.rpartition(".")
        smaller.get_submodule(module).register_parameter(leaf, nn.Parameter(state[name], requires_grad=False))
    gone = [layout.axis[name].module for name, keep in axis_keep.items() if not keep.any()]
    for name, keep in axis_keep.items():
        axis = layout.axis[name]
        if any(axis.module.startswith(f"{outer}.") for outer in gone):
            continue
        if keep.any():
            _state_widths(smaller, axis, int(keep.sum()))
        else:
            _empty(smaller, axis)
    return smaller


def _state_widths(model: nn.Module, axis: Axis, kept: int) -> None:
    for cut in axis.cuts:
        fit(model.get_submodule(cut.parameter.rpartition(".")[0]))
    for owner, name, value in list(counts_of(model, axis, kept)):
        setattr(owner, name, value)


def _empty(model: nn.Module, axis: Axis) -> None:
    parent, _, name = axis.module.rpartition(".")
    layer = model.get_submodule(parent)
    width = width_out(model, axis) if axis.module == axis.reader else None
    delattr(layer, name)
    setattr(layer, name, Missing(axis.layer, axis.outputs, axis.returns, width))
    for norm in {parameter.rpartition(".")[0] for parameter in axis.module_only}:
        setattr(layer, norm.rpartition(".")[2], nn.Identity())
