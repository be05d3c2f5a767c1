"""The weights of a GGUF file: their names, the order of their rows, their number format; written and read back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_plugins.exporters.gguf.architecture import TURNS_NEIGHBOURS
from polyprune_plugins.exporters.gguf.quantise import FILE_TYPES, format_of, quantised

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_plugins.exporters.gguf.architecture import Form

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED = ("attn_q", "attn_k", "attn_v")
FACTORS = "rope_freqs.weight"


def write_file(path: Path, form: Form, model: Any, kind: str, write_fields: Callable[[Any], None]) -> None:
    """Writes a model's GGUF file, a tensor at a time; `kind` is the number format of its matrices."""
    import gguf
    import numpy

    writer = gguf.GGUFWriter(path, form.architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPES[kind])
    write_fields(writer)
    kinds, layers, tied = {}, model.config.num_hidden_layers, model.config.tie_word_embeddings
    for name, shape in ((name, tuple(tensor.shape)) for name, tensor in _items(form, model)):
        kinds[name] = format_of(name, shape, kind, layers, tied)
        size = gguf.quants.quant_shape_to_byte_shape(shape, kinds[name])
        floats = {gguf.GGMLQuantizationType.F32: numpy.float32, gguf.GGMLQuantizationType.F16: numpy.float16}
        if kinds[name] in floats:
            dtype = numpy.dtype(floats[kinds[name]])
            writer.add_tensor_info(name, shape, dtype, int(numpy.prod(shape)) * dtype.itemsize)
        else:
            dtype = numpy.dtype(numpy.uint8)
            writer.add_tensor_info(name, size, dtype, int(numpy.prod(size)), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _items(form, model):
        writer.write_tensor_data(quantised(tensor.float().cpu().numpy(), kinds[name]))
    writer.close()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Returns the weights of a file that `write_file` wrote, by transformers' names, and the format of its matrices."""
    import gguf
    import torch

    reader = gguf.GGUFReader(str(path))
    architecture = reader.fields["general.architecture"].contents()

    def field(name: str) -> Any:
        return reader.fields[f"{architecture}.{name}"].contents()

    def per_layer(name: str) -> list[int]:
        value = field(name)
        return value if isinstance(value, list) else [value] * field("block_count")

    width, heads = field("attention.key_length"), per_layer("attention.head_count")
    groups = per_layer("attention.head_count_kv")
    found: dict[str, Tensor] = {}
    kind = "f32"
    for stored in reader.tensors:
        value = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
        if value.dim() > 1:
            kind = stored.tensor_type.name.lower()
        match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored.name)
        if match is None:
            if stored.name != FACTORS:
                outside, _, what = stored.name.partition(".")
                found[f"{OUTSIDE[outside]}.{what}"] = value
            continue
        layer, part, what = int(match[1]), match[2], match[3]
        parts = {part: value}
        if part == "attn_qkv":
            sizes = [heads[layer] * width, groups[layer] * width, groups[layer] * width]
            parts = dict(zip(FUSED, value.split(sizes), strict=True))
        for part, rows in parts.items():
            if architecture in TURNS_NEIGHBOURS and part in FUSED[:2]:
                rows = rows.reshape(-1, width // 2, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
            found[f"model.layers.{layer}.{IN_A_LAYER[part]}.{what}"] = rows
    return found, kind


def _items(form: Form, model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of the file by its names."""
    import torch

    state = model.state_dict()
    yield from _rope_factors(model)
    for name, other in OUTSIDE.items():
        if name != "output" or not model.config.tie_word_embeddings:
            yield f"{name}.weight", state[f"{other}.weight"]
    width = int(model.config.head_dim)
    for layer in range(model.config.num_hidden_layers):
        parts = {}
        for name, other in IN_A_LAYER.items():
            for what in ("weight", "bias"):
                rows = state.get(f"model.layers.{layer}.{other}.{what}")
                if rows is None:
                    continue
                if form.permuted and name in FUSED[:2]:
                    rows = rows.reshape(-1, 2, width // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
                parts[f"{name}.{what}"] = rows
        if form.architecture == "openelm":
            fused = torch.cat([parts.pop(f"{name}.weight") for name in FUSED])
            parts["attn_qkv.weight"] = fused
        for name, rows in parts.items():
            yield f"blk.{layer}.{name}", rows


def _rope_factors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields what the frequencies of a `llama3` rope are divided by, (head_dim / 2,); nothing for other ropes."""
    import torch

    rope = model.config.rope_parameters
    if rope["rope_type"] != "llama3":
        return
    turned = next(module.inv_freq for module in model.modules() if hasattr(module, "inv_freq")).double()
    steps = torch.arange(0, 2 * len(turned), 2, dtype=torch.float64) / (2 * len(turned))
    yield FACTORS, (rope["rope_theta"] ** -steps / turned.cpu()).float()
