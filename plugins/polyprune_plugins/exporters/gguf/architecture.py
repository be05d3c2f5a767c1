"""Which of llama.cpp's architectures holds a pruned model, and what is filled up with zeros to fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyprune_core import Axis, LoadedModel, PrunedModel

# By family: for layers that are alike, and for layers that differ.
ALIKE = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
VARYING = {"llama": "deci", "mistral": "deci", "qwen2": "deci", "qwen3": "openelm"}
# Their rotary embedding turns neighbouring entries of a head, transformers' entry i and i + head_dim / 2.
TURNS_NEIGHBOURS = {"llama", "deci"}
ROPES = {"default": "none", "linear": "linear", "llama3": "none", "yarn": "yarn"}
UNIFORM = "Use --exporter gguf:shape=uniform, or huggingface."


@dataclass(frozen=True)
class Form:
    """A pruned model as the file holds it: `pruned`, with zeros where the architecture needs some entries."""

    pruned: PrunedModel
    architecture: str

    @classmethod
    def of(cls, pruned: PrunedModel, step: int) -> Form:
        """Returns the form of a model whose channels come in multiples of `step` wherever the dense model's do."""
        from polyprune_core import padded

        family, left = pruned.layout.family, _left(pruned)
        kept = pruned.kept_layers
        sizes = {}
        for axis in _axes(pruned):
            count = left[axis.name]
            if axis.layer not in kept:
                continue
            if axis.kind == "mlp":
                up = -(-max(count, 1) // step) * step
                sizes[axis.name] = up if up <= axis.size else max(count, 1)
            elif not count and (axis.layer == kept[0] or VARYING[family] == "openelm"):
                sizes[axis.name] = axis.blocks
        filled = padded(pruned, sizes) if any(left[name] != size for name, size in sizes.items()) else pruned
        left = _left(filled)
        widths = {(axis.kind, left[axis.name]) for axis in _axes(filled) if axis.layer in kept}
        alike = len(widths) == len({kind for kind, _ in widths}) and not pruned.added()
        architecture = ALIKE[family] if alike else VARYING[family]
        return cls(filled, architecture)

    @property
    def permuted(self) -> bool:
        """Whether the rows of queries and keys stand in another order than in transformers."""
        return self.architecture in TURNS_NEIGHBOURS


def holds_biases(family: str) -> bool:
    """Whether the architecture for layers that differ has biases of every linear module."""
    return VARYING.get(family) != "openelm"


def check_form(base: LoadedModel, varying: bool) -> None:
    """Refuses a model that llama.cpp has no architecture for; `varying`: if layers may differ.

    Raises:
        ModelError: there is none; it says why.
    """
    from polyprune_core import ModelError

    config: Any = base.model.config
    family = getattr(config, "base_model_type", config.model_type)
    if family not in ALIKE:
        raise ModelError(f"{base.name}: GGUF is written for {', '.join(ALIKE)}, not for {family}. Use huggingface.")
    rope = config.rope_parameters["rope_type"]
    if config.hidden_act != "silu":
        raise ModelError(
            f"{base.name}: llama.cpp computes MLPs of {family} with silu, not {config.hidden_act}. Use huggingface."
        )
    if rope not in ROPES:
        raise ModelError(
            f"{base.name}: no GGUF is written for rope_type {rope!r}, only for {', '.join(ROPES)}. Use huggingface."
        )
    if not varying or VARYING[family] != "openelm":
        return
    if not config.tie_word_embeddings:
        raise ModelError(
            f"{base.name}: llama.cpp reads {family} layers that differ with tied embeddings only. {UNIFORM}"
        )
    if rope != "default" or getattr(config, "attention_bias", False):
        raise ModelError(
            f"{base.name}: llama.cpp reads {family} layers that differ without biases and rope scaling only. {UNIFORM}"
        )


def _axes(pruned: PrunedModel) -> tuple[Axis, ...]:
    return pruned.layout.divided(pruned.axis_keep())


def _left(pruned: PrunedModel) -> dict[str, int]:
    keep = pruned.axis_keep()
    return {axis.name: int(keep[axis.name].sum()) if axis.name in keep else axis.size for axis in _axes(pruned)}
