"""Causal language models whose layers differ in their numbers of heads and channels, or lack attention or MLP.

This file is copied next to the weights of a pruned model. Every class is made from one of transformers when it is
asked for: PolypruneLlamaForCausalLM, for example, is LlamaForCausalLM with decoder layer i built from
`config.per_layer_config[i]` and without the sublayers its `skip` lists. `config.polyprune` says the rest: under
"decoder" where the decoder layers are, under "sublayers" which modules of a layer a sublayer consists of, under
"resized" the shapes and numbers of a layer that its configuration cannot say, under "biases" which linear modules have
a bias that those of the family have not.
"""

import copy
import pathlib
import shutil
from typing import Any

import transformers
from torch import Tensor, nn

PREFIX = "Polyprune"


class PerLayerConfig:
    """Goes before a family's configuration; `base_model_type` is the family's own model type."""

    def validate(self) -> None:
        """Accepts any widths: some families want hidden_size to be a multiple of num_attention_heads."""


class PerLayerModel:
    """Goes before a family's model, whose decoder layers are all alike, and gives each layer its own widths."""

    base_model: Any
    base_model_prefix: str
    name_or_path: str

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        per_layer = config.to_dict().get("per_layer_config")
        config.per_layer_config = None
        shared = copy.copy(config)
        try:
            super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        finally:
            config.per_layer_config = per_layer
        for module in self.modules():  # type: ignore[attr-defined]
            # Rotary embeddings ask for the number of heads when they only need head_dim, the same in every layer.
            if hasattr(module, "inv_freq") and getattr(module, "config", None) is config:
                module.config = shared
        says = getattr(config, "polyprune", None) or {}
        path = says.get("decoder", "model.layers")
        layers = self.base_model.get_submodule(path.removeprefix(f"{self.base_model_prefix}."))
        fields = {field for own in (per_layer or {}).values() for field in own} - {"skip"}
        for index, layer in enumerate(layers if per_layer else ()):
            layers[index] = _layer(type(layer), config, index, fields)
        for index, own in says.get("resized", {}).items():
            resize(layers[int(index)], own.get("shapes", {}), own.get("numbers", {}))
            _without(layers[int(index)], config, own.get("skip", ()), int(index))
        for name in says.get("biases", ()):
            linear = layers.get_submodule(name.removeprefix(f"{path}."))
            outputs = linear.weight.shape[1 if hasattr(linear, "nf") else 0]
            linear.bias = nn.Parameter(linear.weight.new_zeros(outputs))

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Takes this file along, and the card and the texts of licences from where the model was read."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        code, source, target = pathlib.Path(__file__), pathlib.Path(self.name_or_path), pathlib.Path(save_directory)
        is_pruned = (source / code.name).is_file()
        beside = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*") if self.name_or_path and is_pruned else ()
        for file in (code, *(found for name in beside for found in source.glob(name))):
            if not (target / file.name).exists():
                shutil.copyfile(file, target / file.name)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Says that the family's own code fills buffers which no file holds; transformers would leave them empty."""
        return False


class Missing:
    """Stands where a sublayer was and puts out zero. It is no module: to all who look, the layer has none there.

    A missing attention still writes one number per token to the cache, because transformers counts the tokens seen so
    far in the first layer's. `returns` is the argument that such a sublayer adds its output to by itself, `width` the
    number of its outputs where that is not the number of its inputs.
    """

    def __init__(self, layer_index: int, outputs: int, returns: int | None = None, width: int | None = None) -> None:
        self.layer_index, self.outputs, self.returns, self.width = layer_index, outputs, returns, width

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        nothing = hidden.new_zeros(*hidden.shape[:-1], self.width or hidden.shape[-1])
        for value in (*args, *kwargs.values()):
            if self.outputs > 1 and isinstance(value, transformers.Cache):
                seen = nothing[:, None, :, :1]
                value.update(seen, seen, self.layer_index)
        output = nothing if self.returns is None else args[self.returns]
        return output if self.outputs == 1 else (output, *[None] * (self.outputs - 1))


class OwnConfig:
    """A layer's configuration: the model's, whatever that becomes later, but for what it says itself."""

    def __init__(self, shared: Any, own: dict[str, Any]) -> None:
        vars(self).update(own, shared=shared)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "shared" not in vars(self):
            raise AttributeError(name)
        return getattr(self.shared, name)


def resize(layer: nn.Module, shapes: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Gives parameters of a layer other shapes, empty, and sets numbers that its code counts by."""
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner: Any = layer.get_submodule(path)
        old = getattr(owner, leaf)
        setattr(owner, leaf, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
        fit(owner)
    for name, value in numbers.items():
        path, _, leaf = name.rpartition(".")
        if path.endswith(".config"):
            owner = layer.get_submodule(path.removesuffix(".config"))
            owner.config = OwnConfig(owner.config, {leaf: value})
        else:
            setattr(layer.get_submodule(path), leaf, value)


def fit(linear: Any) -> None:
    """Makes what a linear module says of its sizes those of its weight."""
    if isinstance(linear, nn.Linear):
        linear.out_features, linear.in_features = linear.weight.shape
    elif hasattr(linear, "nf"):
        linear.nx, linear.nf = linear.weight.shape


def _layer(layer_class: Any, config: Any, index: int, fields: set[str]) -> Any:
    own = config.per_layer_config[index]
    layer = layer_class(own, index)
    widths = {field: getattr(own, field) for field in fields}
    for module in layer.modules():
        # A later change, such as another attention implementation, is made in the model's configuration only.
        if getattr(module, "config", None) is own:
            module.config = OwnConfig(config, widths) if widths else config
    _without(layer, config, getattr(own, "skip", ()), index)
    return layer


def _without(layer: Any, config: Any, kinds: Any, index: int) -> None:
    """Takes sublayers out of a layer."""
    gone: list[str] = []
    for kind in kinds:
        sublayer = config.polyprune["sublayers"][kind]
        if any(sublayer["module"].startswith(f"{outer}.") for outer in gone):
            continue
        gone.append(sublayer["module"])
        missing = Missing(index, sublayer["outputs"], sublayer.get("returns"), sublayer.get("width"))
        path, _, leaf = sublayer["module"].rpartition(".")
        owner = layer.get_submodule(path)
        delattr(owner, leaf)
        setattr(owner, leaf, missing)
        for norm in sublayer["norms"]:
            setattr(layer, norm, nn.Identity())


def __getattr__(name: str) -> Any:
    stock = getattr(transformers, name[len(PREFIX) :], None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(stock, transformers.PreTrainedConfig):
        mixin: type = PerLayerConfig
        body: dict[str, Any] = {"model_type": f"polyprune_{stock.model_type}", "base_model_type": stock.model_type}
    else:
        mixin = PerLayerModel
        config_name = PREFIX + stock.config_class.__name__
        body = {"config_class": globals().get(config_name) or __getattr__(config_name)}
    made = type(name, (mixin, stock), {"__module__": __name__, **body})
    globals()[name] = made
    return made
