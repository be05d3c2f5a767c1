"""The fields of a GGUF file that say what its tensors are: sizes by layer, rotary embedding, tokenizer, origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyprune_plugins.exporters.gguf.architecture import ROPES

if TYPE_CHECKING:
    from polyprune_plugins.exporters.gguf.architecture import Form


def write_fields(writer: Any, form: Form, model: Any, words: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """Writes all fields; `words` are those of the tokenizer, `origin` is what polyprune says of the model."""
    config, base = model.config, form.pruned.base
    writer.add_name(f"{origin['base']['name'].rsplit('/', 1)[-1]} pruned")
    if base.licence:
        writer.add_license(base.licence)
    if base.hub_id:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.hub_id)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base.hub_id}")
    writer.add_string("polyprune.origin", json.dumps(origin))
    queries, groups, channels = widths(model)
    writer.add_block_count(len(queries))
    writer.add_context_length(_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_vocab_size(config.vocab_size)
    varying = form.architecture in ("deci", "openelm")
    writer.add_head_count(queries if varying else queries[0])
    writer.add_head_count_kv(groups if varying else groups[0])
    writer.add_feed_forward_length(channels if varying else channels[0])
    width = head_dim(config)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rope(writer, config.rope_parameters)
    _write_words(writer, words)


def widths(model: Any) -> tuple[list[int], list[int], list[int]]:
    """Returns the numbers of query heads, key and value heads, and channels of every layer."""
    width = head_dim(model.config)
    counts: tuple[list[int], list[int], list[int]] = ([], [], [])
    state = {name: tensor.shape[0] for name, tensor in model.state_dict().items()}
    for index in range(model.config.num_hidden_layers):
        layer = f"model.layers.{index}"
        counts[0].append(state.get(f"{layer}.self_attn.q_proj.weight", 0) // width)
        counts[1].append(state.get(f"{layer}.self_attn.k_proj.weight", 0) // width)
        counts[2].append(state.get(f"{layer}.mlp.up_proj.weight", 0))
    return counts


def head_dim(config: Any) -> int:
    """Returns the entries of one head."""
    return int(config.head_dim)


def _context(config: Any) -> int:
    """The tokens that llama.cpp computes alike: it has no sliding window in these architectures."""
    layers = set(getattr(config, "layer_types", None) or ())
    slides = config.sliding_window if "sliding_attention" in layers or config.model_type.endswith("mistral") else None
    return int(min(config.max_position_embeddings, slides or config.max_position_embeddings))


def _write_rope(writer: Any, rope: Mapping[str, Any]) -> None:
    from gguf import RopeScalingType

    writer.add_rope_freq_base(rope["rope_theta"])
    kind = ROPES[rope["rope_type"]]
    if kind == "none":
        return
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, default, add in (
            ("beta_fast", 32.0, writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", 1.0, writer.add_rope_scaling_yarn_beta_slow),
        ):
            add(rope.get(name) or default)


def _write_words(writer: Any, words: Mapping[str, Any]) -> None:
    for name, value in words.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
