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
from polyprune_core.models.describe import families
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import AUTO_CLASSES, CODE, is_stock, own_class, stock_classes
from polyprune_core.pruning.cut_copy import cut_copy
from polyprune_core.pruning.surgery import compact_items

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
            None, config=config, state_dict=dict(state_items(pruned)), dtype=dense.dtype, output_loading_info=True
        )
    wrong = {what: sorted(map(str, names)) for what, names in report.items() if names}
    if wrong:
        raise ModelError(f"the weights left of {pruned.base.name} do not fit their configuration: {wrong}.")
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
    values = _shared_values(pruned)
    for field in {field for layer in per_layer for field in layer} - {"skip"}:
        values[field] = max(layer[field] for layer in per_layer if field in layer)
    varying = {
        index: different
        for index, layer in enumerate(per_layer)
        if (different := {field: value for field, value in layer.items() if value != values.get(field)})
    }
    biases = [name.rpartition(".")[0] for name in map(_renaming(pruned), pruned.added())]
    if not varying and not biases:
        try:
            config: PreTrainedConfig = stock["AutoConfig"](**values)
            return config
        except StrictDataclassError:
            # LLaMA's own class wants hidden_size to be a multiple of the number of heads.
            pass
    config = own_class(stock["AutoConfig"])(
        **values,
        per_layer_config=varying or None,
        # Whoever asks for the number of heads of a model whose layers differ is told that of the widest.
        allow_global_per_layer_attribute_access=True,
        polyprune={
            "sublayers": {pattern["kind"]: _sublayer(pattern) for pattern in _patterns(pruned.layout)},
            **({"biases": biases} if biases else {}),
        },
        auto_map={auto: f"{CODE.stem}.{own_class(stock[auto]).__name__}" for auto in AUTO_CLASSES},
    )
    return config


def kept_layers(layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> list[int]:
    """Returns the layers with anything left, in order; layer i of the smaller model is the i-th of them."""
    left = {axis.layer for axis in layout.axes if axis.name not in axis_keep or bool(axis_keep[axis.name].any())}
    return sorted(left)


def _per_layer(pruned: Pruned) -> list[dict[str, Any]]:
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


def _shared_values(pruned: Pruned) -> dict[str, Any]:
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


def state_items(pruned: Pruned) -> Iterator[tuple[str, Tensor]]:
    """Yields the smaller model's parameters under its own names."""
    renamed = _renaming(pruned)
    for name, tensor in compact_items(pruned.base.model, pruned.layout, pruned.axis_keep(), pruned.updates):
        yield renamed(name), tensor


def _renaming(pruned: Pruned) -> Callable[[str], str]:
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


def _patterns(layout: ModelLayout) -> list[dict[str, Any]]:
    return next(family["axes"] for family in families().values() if layout.family in family["model_types"])


def _sublayer(pattern: dict[str, Any]) -> dict[str, Any]:
    return {"module": pattern["module"], "norms": pattern["norm"], "outputs": pattern["outputs"]}


def class_for(config: PreTrainedConfig, layout: ModelLayout) -> Any:
    """Returns the class that a configuration is for: the family's own, or polyprune's made from it."""
    causal = stock_classes(layout.family)[2]
    return causal if config.model_type == layout.family else own_class(causal)
