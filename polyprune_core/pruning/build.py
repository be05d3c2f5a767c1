"""The smaller model as a model of transformers: the kept slices in layers that are as wide as what is kept.

Layers with nothing left go and the others are renumbered. If those that stay are all alike the result is of the
family's own class; otherwise it is of a class of `models/modeling_polyprune.py`, a file that goes with the weights. A
model with code of its own keeps it, in memory: what cannot be written is known before anything is decided.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.models.families import family_of
from polyprune_core.models.layout import Axis, ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import AUTO_CLASSES, CODE, is_stock, own_class, stock_classes
from polyprune_core.pruning.cut_copy import cut_copy
from polyprune_core.pruning.sublayer import counts_by_name, width_out
from polyprune_core.pruning.surgery import Remains, compact_items

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from polyprune_core.models.sources import LoadedModel


class Pruned(Protocol):
    """What is built: of which model which entries of its axes stay, and what a repair made of them."""

    @property
    def base(self) -> LoadedModel:
        """The dense model."""

    @property
    def layout(self) -> ModelLayout:
        """Its layout."""

    @property
    def updates(self) -> Mapping[str, Tensor]:
        """Parameters that were changed or added, by name in the dense model, in their kept shape."""

    def axis_keep(self) -> dict[str, Tensor]:
        """Kept entries by axis name."""

    def added(self) -> list[str]:
        """Which of the updates the dense model does not have."""


OF_THE_DENSE = {
    "allow_global_per_layer_attribute_access",
    "architectures",
    "auto_map",
    "model_type",
    "per_layer_config",
    "polyprune",
    "transformers_version",
}


def build_compact(pruned: Pruned) -> PreTrainedModel:
    """Returns the smaller model: eval mode, no gradients, device and dtype of the dense one, `config.use_cache` on.

    Parameters that nothing was cut from may share their memory with the dense model's.
    """
    dense: Any = pruned.base.model
    if not is_stock(dense):
        copied: PreTrainedModel = cut_copy(dense, pruned.layout, pruned.axis_keep(), pruned.updates)
        copied.config.use_cache = True
        return copied
    config = compact_config(pruned)
    own = class_for(config, pruned.layout)
    with quiet():
        model, report = own.from_pretrained(
            None,
            config=config,
            state_dict=dict(state_items(pruned)),
            dtype=dense.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if wrong:
        shown = {what: names[:3] for what, names in wrong.items()}
        raise ModelError(
            f"the weights left of {pruned.base.name} do not fit their configuration: {shown}. Where a family's code "
            "has other widths than its configuration says, write config = {} for that kind, and layers are resized."
        )
    model.generation_config = copy.deepcopy(dense.generation_config)
    result: PreTrainedModel = model.to(dense.device).eval().requires_grad_(False)
    return result


def compact_config(pruned: Pruned) -> PreTrainedConfig:
    """Returns the smaller model's configuration: the widest layer's widths, and where others differ `per_layer_config`.

    The dense model is of transformers' own class for its family, or of polyprune's made from that.
    """
    from huggingface_hub.errors import StrictDataclassError

    stock = dict(zip(AUTO_CLASSES, stock_classes(pruned.layout.family), strict=True))
    per_layer = _per_layer(pruned)
    resized = _resized(pruned)
    values = _shared_values(pruned)
    for field in {field for layer in per_layer for field in layer} - {"skip"}:
        values[field] = max(layer[field] for layer in per_layer if field in layer)
    remade = any(axis.config_counts for axis in pruned.layout.axes)
    if not remade:  # nor can the configuration of a model that also sees say which layers lack what
        for index, layer in enumerate(per_layer):
            if skip := layer.pop("skip", ()):
                resized.setdefault(str(index), {})["skip"] = skip
    varying = {
        index: different
        for index, layer in enumerate(per_layer)
        if (different := {field: value for field, value in layer.items() if value != values.get(field)})
    }
    biases = [name.rpartition(".")[0] for name in map(renaming(pruned), [*_added_before(pruned), *pruned.added()])]
    if not varying and not biases and not resized:
        try:
            config: PreTrainedConfig = stock["AutoConfig"](**values)
            return config
        except StrictDataclassError:
            # LLaMA's own class wants hidden_size to be a multiple of the number of heads.
            pass
    says = {
        "sublayers": _sublayers(pruned),
        "decoder": pruned.layout.layers,
        "resized": resized,
        "biases": biases,
    }
    defaults = {"decoder": "model.layers", "resized": {}, "biases": []}
    config = own_class(stock["AutoConfig"])(
        **values,
        per_layer_config=varying or None,
        # Whoever asks for the number of heads of a model whose layers differ is told that of the widest.
        allow_global_per_layer_attribute_access=True,
        polyprune={key: value for key, value in says.items() if value != defaults.get(key)},
        auto_map={auto: f"{CODE.stem}.{own_class(stock[auto]).__name__}" for auto in AUTO_CLASSES},
    )
    return config


def kept_layers(layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> list[int]:
    """Returns the layers with anything left, in order; layer i of the smaller model is the i-th of them."""
    left = {axis.layer for axis, kept in _kept(layout, axis_keep) if kept}
    return sorted({*left, *layout.fixed})


def _kept(layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> Iterator[tuple[Axis, int]]:
    """Yields every axis with the number of its entries that stay: in place of one that is divided another way, that."""
    for axis in layout.divided(axis_keep):
        yield axis, int(axis_keep[axis.name].sum()) if axis.name in axis_keep else axis.size


def _per_layer(pruned: Pruned) -> list[dict[str, Any]]:
    """The widths of each layer that stays, by configuration field, and under `skip` the kinds it lacks."""
    axis_keep = pruned.axis_keep()
    layers: dict[int, dict[str, Any]] = {index: {} for index in kept_layers(pruned.layout, axis_keep)}
    skipped = {index: _skipped_before(pruned, index) for index in layers}
    for axis, kept in _kept(pruned.layout, axis_keep):
        if axis.layer not in layers:
            continue
        whole = dict(pruned.layout.axis[axis.of].config_counts if axis.of else axis.config_counts)
        size = pruned.layout.axis[axis.of].size if axis.of else axis.size
        if kept:
            widths = {field: count * size for field, count in whole.items()}
            layers[axis.layer] |= widths | {field: count * kept for field, count in axis.config_counts}
        else:
            skipped[axis.layer].append(pruned.layout.axis[axis.of].kind if axis.of else axis.kind)
    order = list(family_of(pruned.layout.family).axes)
    return [
        widths | ({"skip": sorted(skipped[index], key=order.index)} if skipped[index] else {})
        for index, widths in layers.items()
    ]


def _skipped_before(pruned: Pruned, index: int) -> list[str]:
    """Returns the kinds that a layer of the dense model, itself a smaller one, lacks already."""
    dense: Any = pruned.base.model
    says = getattr(dense.config, "polyprune", None) or {}
    skip = list(says.get("resized", {}).get(str(index), {}).get("skip", ()))
    if dense.config.to_dict().get("per_layer_config"):
        skip += getattr(dense.config.per_layer_config[index], "skip", ())
    return skip


def _added_before(pruned: Pruned) -> list[str]:
    """The biases, by name, that a dense model which is a smaller one itself has beside those of its family."""
    model: Any = pruned.base.model
    says = getattr(model.config, "polyprune", None) or {}
    gone = Remains.of(model, pruned.layout, pruned.axis_keep()).gone
    return [f"{module}.bias" for module in says.get("biases", ()) if not module.startswith(gone)]


def _resized(pruned: Pruned) -> dict[str, Any]:
    """The shapes and numbers of layers that no field of a configuration can say, by the layer's new number."""
    model: Any = pruned.base.model
    found: dict[str, Any] = {}
    before = (getattr(model.config, "polyprune", None) or {}).get("resized", {})
    axis_keep = pruned.axis_keep()
    remains = Remains.of(model, pruned.layout, axis_keep)
    for new, old in enumerate(kept_layers(pruned.layout, axis_keep)):
        shapes: dict[str, Any] = {}
        numbers: dict[str, Any] = {}
        prefix = f"{pruned.layout.layers}.{old}."
        earlier = before.get(str(old), {}).get("shapes", {})
        for axis, kept in _kept(pruned.layout, axis_keep):
            if axis.layer != old or axis.config_counts or not kept:
                continue
            names = {cut.parameter.removeprefix(prefix): cut.parameter for cut in axis.cuts}
            if kept == axis.size and not names.keys() & earlier.keys():
                continue
            for name, whole in names.items():
                shapes[name] = list(remains.shape(whole, model.get_parameter(whole)) or ())
            for name, value in counts_by_name(model, axis, kept):
                numbers[name.removeprefix(prefix)] = value
        if shapes:
            found[str(new)] = {"shapes": shapes, "numbers": numbers}
    return found


def _shared_values(pruned: Pruned) -> dict[str, Any]:
    model: Any = pruned.base.model
    family = family_of(pruned.layout.family)
    values: dict[str, Any] = model.config.to_dict()
    decoder = values[family.text] if family.text else values
    kept = kept_layers(pruned.layout, pruned.axis_keep())
    for field in family.layer_lists:
        if decoder.get(field):
            decoder[field] = [decoder[field][index] for index in kept]
    for field in family.layer_indices:
        if decoder.get(field):
            decoder[field] = [new for new, old in enumerate(kept) if old in decoder[field]]
    for kind, says in family.axes.items():
        # head_dim: told, or a family would work it out from the number of heads.
        name, axes = says.get("entry_width"), pruned.layout.of_kind(kind)
        if isinstance(name, str) and axes and axes[0].config_counts:
            values[name] = getattr(model.get_submodule(axes[0].module), name)
    names: Any = getattr(model.config, "attribute_map", {})
    decoder |= {names.get("num_hidden_layers", "num_hidden_layers"): len(kept), "use_cache": True}
    return {field: value for field, value in values.items() if field not in OF_THE_DENSE}


def state_items(pruned: Pruned) -> Iterator[tuple[str, Tensor]]:
    """Yields the smaller model's parameters under its own names."""
    renamed = renaming(pruned)
    for name, tensor in compact_items(pruned.base.model, pruned.layout, pruned.axis_keep(), pruned.updates):
        yield renamed(name), tensor


def renaming(pruned: Pruned) -> Callable[[str], str]:
    """Returns what gives a parameter of the dense model its name in the smaller one, whose layers are counted anew."""
    path = pruned.layout.layers
    kept = kept_layers(pruned.layout, pruned.axis_keep())
    names = {f"{path}.{old}": f"{path}.{new}" for new, old in enumerate(kept)}
    depth = path.count(".") + 2

    def renamed(name: str) -> str:
        parts = name.split(".")
        layer = ".".join(parts[:depth])
        return ".".join([names.get(layer, layer), *parts[depth:]])

    return renamed


def _sublayers(pruned: Pruned) -> dict[str, Any]:
    """What has to be known of each kind of sublayer to take it out of a layer."""
    layout = pruned.layout
    found: dict[str, Any] = {}
    for axis in layout.axes:
        prefix = f"{layout.layers}.{axis.layer}."
        norms = {name.removeprefix(prefix).rpartition(".")[0]: None for name in axis.module_only}
        says = {"module": axis.module.removeprefix(prefix), "norms": list(norms), "outputs": axis.outputs}
        says |= {} if axis.returns is None else {"returns": axis.returns}
        says |= {"width": width_out(pruned.base.model, axis)} if axis.module == axis.reader else {}
        found.setdefault(axis.kind, says)
    before = (getattr(pruned.base.model.config, "polyprune", None) or {}).get("sublayers", {})
    return {**before, **found}


def class_for(config: PreTrainedConfig, layout: ModelLayout) -> Any:
    """Returns the class that a configuration is for: the family's own, or polyprune's made from it."""
    causal = stock_classes(layout.family)[2]
    return causal if config.model_type == layout.family else own_class(causal)
