"""Causal language models whose layers differ in their numbers of heads and channels, or lack attention or MLP.

This file is copied next to the weights of a pruned model. Every class is made from one of transformers when it is
asked for: PolypruneLlamaForCausalLM, for example, is LlamaForCausalLM with decoder layer i built from
`config.per_layer_config[i]` and without the sublayers its `skip` lists. `config.polyprune["sublayers"]` says which
modules of a layer a sublayer consists of, `config.polyprune["biases"]` which linear modules have a bias that those of
the family have not.
"""

import copy
from typing import Any

import torch
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
        layers = self.base_model.layers
        for index, layer in enumerate(layers if per_layer else ()):
            layers[index] = _layer(type(layer), config, index)
        for name in (getattr(config, "polyprune", None) or {}).get("biases", ()):
            linear = layers.get_submodule(name.partition("layers.")[2])
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.weight.shape[0]))


class Missing:
    """Stands where a sublayer was and puts out zero. It is no module: to all who look, the layer has none there.

    A missing attention still writes one number per token to the cache, because transformers counts the tokens seen so
    far in the first layer's.
    """

    def __init__(self, layer_index: int, outputs: int) -> None:
        self.layer_index, self.outputs = layer_index, outputs

    def __call__(self, hidden_states: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        nothing = torch.zeros_like(hidden_states)
        if past_key_values is not None:
            seen = nothing[:, None, :, :1]
            past_key_values.update(seen, seen, self.layer_index)
        return nothing if self.outputs == 1 else (nothing, *[None] * (self.outputs - 1))


def _layer(layer_class: Any, config: Any, index: int) -> Any:
    own = config.per_layer_config[index]
    layer = layer_class(own, index)
    for kind in getattr(own, "skip", ()):
        sublayer = config.polyprune["sublayers"][kind]
        delattr(layer, sublayer["module"])
        setattr(layer, sublayer["module"], Missing(index, sublayer["outputs"]))
        for norm in sublayer["norms"]:
            setattr(layer, norm, nn.Identity())
    for module in layer.modules():
        # A later change, such as another attention implementation, is made in the model's configuration only.
        if getattr(module, "config", None) is own:
            module.config = config
    return layer


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
