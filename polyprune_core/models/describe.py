"""Reads a live model's layout with the patterns of families.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

import torch
from torch import nn

from polyprune_core.errors import ModelError
from polyprune_core.models.layout import Axis, Cut, ModelLayout


@cache
def families() -> dict[str, dict[str, Any]]:
    """The family patterns shipped with polyprune, by family name."""
    return tomllib.loads(files("polyprune_core.models").joinpath("families.toml").read_text("utf-8"))


def describe(model: Any) -> ModelLayout:
    """Returns the layout of a causal language model.

    Raises:
        ModelError: the family is unknown, or a module that its pattern names is missing.
    """
    model_type = getattr(model.config, "base_model_type", None) or model.config.model_type
    known = {name: family for family in families().values() for name in family["model_types"]}
    if model_type not in known:
        raise ModelError(
            f"models of family {model_type!r} cannot be cut yet; those of {', '.join(sorted(known))} can. "
            "To add one, list its model type (or its module names) in polyprune_core/models/families.toml."
        )
    family = known[model_type]
    layers = model.get_submodule(family["layers"])
    axes = [
        _axis(model, f"{family['layers']}.{index}", index, pattern, model_type)
        for index, layer in enumerate(layers)
        for pattern in family["axes"]
        if _has(layer, pattern["module"])
    ]
    return ModelLayout(
        family=model_type,
        layers=family["layers"],
        num_layers=len(layers),
        axes=tuple(axes),
        total_parameters=sum(p.numel() for p in model.parameters()),
    )


def _has(layer: nn.Module, name: str) -> bool:
    return isinstance(getattr(layer, name, None), nn.Module)


def _axis(model: Any, prefix: str, layer: int, pattern: dict[str, Any], model_type: str) -> Axis:
    module_name = f"{prefix}.{pattern['module']}"
    module = model.get_submodule(module_name)
    missing = [
        name for name in (*pattern["rows"], pattern["reader"]) if not isinstance(getattr(module, name, None), nn.Linear)
    ]
    if missing:
        raise ModelError(
            f"{module_name} of this {model_type} model has no linear {', '.join(missing)}; families.toml expects "
            f"{', '.join(pattern['rows'])} and {pattern['reader']}. Give the model a family of its own there."
        )
    width = (
        pattern["entry_width"] if isinstance(pattern["entry_width"], int) else getattr(module, pattern["entry_width"])
    )
    rows = {name: getattr(module, name).out_features for name in pattern["rows"]}
    size = rows[pattern["counted_on"]] // width
    cuts = [
        Cut(f"{module_name}.{name}.{part}", dim=0, start=0, width=count // size)
        for name, count in rows.items()
        for part, tensor in getattr(module, name).named_parameters()
    ]
    reader = getattr(module, pattern["reader"])
    cuts.append(Cut(f"{module_name}.{pattern['reader']}.weight", dim=1, start=0, width=reader.in_features // size))
    shared = tuple(
        f"{prefix}.{norm}.{name}"
        for norm in pattern["norm"]
        for name, _ in model.get_submodule(f"{prefix}.{norm}").named_parameters()
    )
    entry_parameters = sum(model.get_parameter(cut.parameter).numel() for cut in cuts) // size
    inside = sum(p.numel() for p in module.parameters())
    return Axis(
        name=f"layers.{layer}.{pattern['kind']}",
        kind=pattern["kind"],
        layer=layer,
        size=size,
        module=module_name,
        reader=f"{module_name}.{pattern['reader']}",
        cuts=tuple(cuts),
        module_only=shared,
        entry_parameters=entry_parameters,
        module_parameters=inside - entry_parameters * size + _numel(model, shared),
        outputs=pattern["outputs"],
        config_counts=tuple((field, rows[name] // width // size) for field, name in pattern["config"].items()),
        cached_values=sum(rows[name] for name in pattern["cache"]) // size,
    )


def _numel(model: nn.Module, names: tuple[str, ...]) -> int:
    parameters: list[torch.Tensor] = [model.get_parameter(name) for name in names]
    return sum(p.numel() for p in parameters)
