"""Whether config.json and the weights belong to each other: sizes before anything is built, every name and shape after.

A model that lacks a weight would be random there, and one that drops a weight would be another model: both are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyprune_core.errors import ModelError
from polyprune_core.models.checkpoint import stored_tensors
from polyprune_core.models.families import families

SHOWN = 3
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
# Matrices that every model of the known anatomy has, by the fields whose product is their number of entries.
MATRICES = (
    ("vocab_size", "hidden_size"),
    ("intermediate_size", "hidden_size"),
    ("num_attention_heads", "head_dim", "hidden_size"),
    ("num_key_value_heads", "head_dim", "hidden_size"),
)
BIASES = {"attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp_bias": ("gate_proj", "up_proj", "down_proj")}


def check_sizes(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses sizes in config.json that the weights cannot have, before memory is asked for by them.

    Raises:
        ModelError: more layers than there are weights for, or a width beyond the number of all weights.
    """
    tensors = list(stored_tensors(folder))
    total = sum(tensor.size for tensor in tensors)
    path = folder / "config.json"
    layers = {int(number) for tensor in tensors for number in re.findall(r"\.(\d+)\.", tensor.name)[:1]}
    asked = config.get("num_hidden_layers")
    if isinstance(asked, int) and asked > len(layers):
        raise ModelError(
            f"{path} says num_hidden_layers={asked}, but the weights are those of {len(layers)} layers. "
            "Copy or download the model again."
        )
    for widths in _widths(config):
        for field, value in widths.items():
            if value > total:
                raise ModelError(f"{path} says {field}={value}, more than there are weights in all ({total:,}).")
        for fields in MATRICES:
            if math.prod(widths.get(field, 0) for field in fields) > total:
                told = ", ".join(f"{field}={widths[field]}" for field in fields)
                raise ModelError(f"{path} says {told}: a matrix of those is larger than all weights ({total:,}).")


def require_fit(folder: Path, model: Any, report: Mapping[str, Any]) -> None:
    """Checks transformers' report on reading `model` from the folder: nothing missing, dropped, or of another shape.

    Raises:
        ModelError: something is; the message names the weights.
    """
    kind = type(model).__name__
    mismatched = sorted(report.get("mismatched_keys") or ())
    if mismatched:
        name, found, expected = mismatched[0]
        more = f" ({len(mismatched) - 1} more differ)" if len(mismatched) > 1 else ""
        raise ModelError(
            f"{folder}: {name} has shape {tuple(found)} in the weights, but {tuple(expected)} by config.json"
            f"{_by_field(model.config, name, tuple(found), tuple(expected))}{more}."
        )
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(f"{folder} lacks {_named(missing)} of {kind}; they would be random.")
    unexpected = sorted(report.get("unexpected_keys") or ())
    if unexpected:
        raise ModelError(
            f"{folder} holds {_named(unexpected)} that {kind} has no place for by config.json; without them it would "
            f"be another model.{_advice(unexpected)}"
        )


def _widths(config: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """The sizes that config.json gives for the model, and for every layer that has its own."""
    layers = config.get("per_layer_config")
    for one in (config, *(layers.values() if isinstance(layers, Mapping) else ())):
        if isinstance(one, Mapping):
            yield {
                field: value
                for field in SIZES
                if isinstance(value := one.get(field, config.get(field)), int) and not isinstance(value, bool)
            }


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    return f"{len(names)} weight{'s' * (len(names) > 1)} ({shown})"


def _by_field(config: Any, name: str, found: Iterable[int], expected: Iterable[int]) -> str:
    """Names the field of the configuration that the first other dimension comes from, where one can be told."""
    pairs = enumerate(zip(found, expected, strict=False))
    dimension, wanted = next(((i, theirs) for i, (ours, theirs) in pairs if ours != theirs), (0, 0))
    values = config.to_dict()
    linear = name.split(".")[-2] if "." in name else ""
    family = families().get(values.get("model_type", ""))
    axes = family.axes.values() if family else ()
    counted = {module: field for axis in axes for field, module in axis.get("config", {}).items()}
    fields = [counted[linear]] if dimension == 0 and linear in counted else []
    fields += [field for field in SIZES if values.get(field) == wanted]
    return f" ({fields[0]}={values.get(fields[0])})" if fields else ""


def _advice(names: list[str]) -> str:
    ends = {field: tuple(f".{linear}.bias" for linear in linears) for field, linears in BIASES.items()}
    fields = [field for field, end in ends.items() if any(name.endswith(end) for name in names)]
    return f" Biases are announced by {' and '.join(f'{field}=true' for field in fields)} there." if fields else ""
