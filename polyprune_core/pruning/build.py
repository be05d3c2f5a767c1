"""The smaller model as a model of transformers: the kept slices in layers that are as wide as what is kept.

Layers with nothing left go and the others are renumbered. If those that stay are all alike the result is of the
family's own class; otherwise it is of a class of `models/modeling_polyprune.py`, a file that goes with the weights. A
model with code of its own keeps it, in memory: what cannot be written is known before anything is decided.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe, families
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import AUTO_CLASSES, CODE, is_stock, own_class, stock_classes
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.cut_copy import cut_copy
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import compact_state_dict
from polyprune_core.pruning.types import Scores, Selection, UnitGroup

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

OF_THE_DENSE = ("architectures", "auto_map", "model_type", "per_layer_config", "polyprune", "transformers_version")


def build_compact(pruned: PrunedModel) -> PreTrainedModel:
    """Returns the smaller model: eval mode, no gradients, device and dtype of the dense one, `config.use_cache` on.

    Parameters that nothing was cut from may share their memory with the dense model's.
    """
    dense: Any = pruned.base.model
    if not is_stock(dense):
        copied: PreTrainedModel = cut_copy(dense, pruned.layout, pruned.axis_keep())
        copied.config.use_cache = True
        return copied
    config = compact_config(pruned)
    own = _class_for(config, pruned.layout)
    with quiet():
        model, report = own.from_pretrained(
            None, config=config, state_dict=_state_dict(pruned), dtype=dense.dtype, output_loading_info=True
        )
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if wrong:
        raise ModelError(f"the weights left of {pruned.base.name} do not fit their configuration: {wrong}.")
    model.generation_config = copy.deepcopy(dense.generation_config)
    result: PreTrainedModel = model.to(dense.device).eval().requires_grad_(False)
    return result


def check_writable(base: LoadedModel) -> None:
    """Checks that a smaller form of a model can be written: its configuration, and none of its code.

    A model as small as one entry less in its first layer is set up without memory for weights.

    Raises:
        ModelError: it cannot.
    """
    model: Any = base.model
    if not is_stock(model):
        raise ModelError(
            f"{base.name} is a {type(model).__name__}, which is not transformers' own: what its code does would be "
            "lost in a folder of a smaller model. --exporter masks writes what stays without the model."
        )
    layout = describe(model)
    groups = [UnitGroup(axis.kind, axis.layer, axis.size, ((axis.name, 1),)) for axis in layout.axes]
    space = MaskSpace(layout, groups)
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[[part.start for part, group in zip(space.slices(), space.groups, strict=True) if group.layer == 0]] = False
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    pruned = PrunedModel(base, space, selection, Scores(keep.float(), "the first entries"))
    try:
        config = compact_config(pruned)
        with torch.device("meta"), quiet():
            made = _class_for(config, layout)._from_config(config)
            for module in made.modules():
                made._init_weights(module)  # as reading it from a folder does
    except Exception as error:
        # Not a list of types: what a configuration of any model leads to inside transformers is nowhere stated.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{base.name} cannot be built with layers of several widths: {reason}") from error


def compact_config(pruned: PrunedModel) -> PreTrainedConfig:
    """Returns the smaller model's configuration: the widest layer's widths, and where others differ `per_layer_config`.

    The dense model is of transformers' own class for its family, or of polyprune's made from that.
    """
    from huggingface_hub.errors import StrictDataclassError

    stock = dict(zip(AUTO_CLASSES, stock_classes(pruned.layout.family), strict=True))
    per_layer = _per_layer(pruned)
    values = _shared_values(pruned)
    for field in {field for layer in per_layer for field in layer} - {"skip"}:
        values[field] = max(layer[field] for layer in per_layer if field in layer)
    varying = {
        index: different
        for index, layer in enumerate(per_layer)
        if (different := {field: value for field, value in layer.items() if value != values.get(field)})
    }
    if not varying:
        try:
            config: PreTrainedConfig = stock["AutoConfig"](**values)
            return config
        except StrictDataclassError:
            # LLaMA's own class wants hidden_size to be a multiple of the number of heads.
            pass
    config = own_class(stock["AutoConfig"])(
        **values,
        per_layer_config=varying or None,
        polyprune={"sublayers": {pattern["kind"]: _sublayer(pattern) for pattern in _patterns(pruned.layout)}},
        auto_map={auto: f"{CODE.stem}.{own_class(stock[auto]).__name__}" for auto in AUTO_CLASSES},
    )
    return config


def kept_layers(layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> list[int]:
    """Returns the layers with anything left, in order; layer i of the smaller model is the i-th of them."""
    left = {axis.layer for axis in layout.axes if axis.name not in axis_keep or bool(axis_keep[axis.name].any())}
    return sorted(left)


def _per_layer(pruned: PrunedModel) -> list[dict[str, Any]]:
    """The widths of each layer that stays, by configuration field, and under `skip` the kinds it lacks."""
    axis_keep = pruned.axis_keep()
    kinds = [pattern["kind"] for pattern in _patterns(pruned.layout)]
    layers: list[dict[str, Any]] = []
    for index in kept_layers(pruned.layout, axis_keep):
        widths: dict[str, Any] = {}
        left = set()
        for axis in (axis for axis in pruned.layout.axes if axis.layer == index):
            kept = int(axis_keep[axis.name].sum()) if axis.name in axis_keep else axis.size
            if kept:
                left.add(axis.kind)
                widths |= {field: count * kept for field, count in axis.config_counts}
        skipped = [kind for kind in kinds if kind not in left]
        layers.append(widths | ({"skip": skipped} if skipped else {}))
    return layers


def _shared_values(pruned: PrunedModel) -> dict[str, Any]:
    model: Any = pruned.base.model
    values: dict[str, Any] = model.config.to_dict()
    kept = kept_layers(pruned.layout, pruned.axis_keep())
    if values.get("layer_types"):
        values["layer_types"] = [values["layer_types"][index] for index in kept]
    for pattern in _patterns(pruned.layout):
        # head_dim: told, or a family would work it out from the number of heads.
        field, axes = pattern["entry_width"], pruned.layout.of_kind(pattern["kind"])
        if isinstance(field, str) and axes:
            values[field] = getattr(model.get_submodule(axes[0].module), field)
    values |= {"num_hidden_layers": len(kept), "use_cache": True}
    return {field: value for field, value in values.items() if field not in OF_THE_DENSE}


def _state_dict(pruned: PrunedModel) -> dict[str, Tensor]:
    axis_keep, path = pruned.axis_keep(), pruned.layout.layers
    names = {f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(kept_layers(pruned.layout, axis_keep))}
    depth = path.count(".") + 2

    def renamed(name: str) -> str:
        parts = name.split(".")
        layer = ".".join(parts[:depth])
        return ".".join([names.get(layer, layer), *parts[depth:]])

    state = compact_state_dict(pruned.base.model, pruned.layout, axis_keep)
    return {renamed(name): tensor for name, tensor in state.items()}


def _patterns(layout: ModelLayout) -> list[dict[str, Any]]:
    return next(family["axes"] for family in families().values() if layout.family in family["model_types"])


def _sublayer(pattern: dict[str, Any]) -> dict[str, Any]:
    return {"module": pattern["module"], "norms": pattern["norm"], "outputs": pattern["outputs"]}


def _class_for(config: PreTrainedConfig, layout: ModelLayout) -> Any:
    causal = stock_classes(layout.family)[2]
    return causal if config.model_type == layout.family else own_class(causal)
