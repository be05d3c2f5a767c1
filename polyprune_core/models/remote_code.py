"""Whose code a model's folder needs: none but transformers', polyprune's own classes, or code that comes along.

A folder that polyprune wrote for layers that differ says so with a model type of its own. It is read with the classes
of this installation; the copy of their source in the folder is for readers without polyprune and is never run here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

CODE = Path(str(files("polyprune_core.models").joinpath("modeling_polyprune.py")))
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
OWN_PREFIX = "polyprune_"


def is_own(config: Mapping[str, Any]) -> bool:
    """Whether a folder with this config.json is of one of polyprune's own classes, whatever else it says."""
    kind = config.get("model_type")
    return isinstance(kind, str) and kind.startswith(OWN_PREFIX) and kind.removeprefix(OWN_PREFIX) in _model_types()


def register_models() -> None:
    """Registers polyprune's model classes with transformers, so that its auto classes load pruned models.

    The auto classes then need no `trust_remote_code` for a folder that polyprune wrote. Classes that were registered
    before under the same names are replaced.
    """
    import transformers

    for model_type in filter(_has_classes, _model_types()):
        config, body, causal = (own_class(stock) for stock in stock_classes(model_type))
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        transformers.AutoModel.register(config, body, exist_ok=True)
        transformers.AutoModelForCausalLM.register(config, causal, exist_ok=True)


def stock_classes(model_type: str) -> tuple[Any, Any, Any]:
    """Returns transformers' own classes of a family, in the order of AUTO_CLASSES."""
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    body = getattr(transformers, str(modeling_auto.MODEL_MAPPING_NAMES[model_type]))
    causal = getattr(transformers, str(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]))
    return CONFIG_MAPPING[model_type], body, causal


def _has_classes(model_type: str) -> bool:
    """Whether this release of transformers has a family at all."""
    from transformers.models.auto import modeling_auto

    return model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def own_class(stock: Any) -> Any:
    """Returns polyprune's class made from one of transformers'."""
    from polyprune_core.models import modeling_polyprune

    return getattr(modeling_polyprune, f"{modeling_polyprune.PREFIX}{stock.__name__}")


def is_stock(model: Any) -> bool:
    """Whether a loaded model is of transformers' own class for a known family, or of polyprune's made from that.

    Its logits are what its family says of the last hidden states, and no code of its own is lost in a smaller model.
    """
    config = model.config
    kind = getattr(config, "base_model_type", None) or config.model_type
    if kind not in _model_types() or not _has_classes(kind):
        return False
    causal = stock_classes(kind)[2]
    return type(model) is causal or type(model) is own_class(causal)


def named_code(config: Mapping[str, Any]) -> list[str]:
    """Returns the auto classes for which a config.json names modules of code that come along."""
    named = config.get("auto_map")
    return sorted(map(str, named)) if isinstance(named, Mapping) else []


def named_kernels(config: Mapping[str, Any]) -> list[str]:
    """Returns the fields of a config.json that name kernels of the hub, which are code too."""
    return sorted(key for key, value in config.items() if "_implementation" in key and "/" in json.dumps(value))


def _model_types() -> list[str]:
    from polyprune_core.models.families import families

    return list(families())
