"""Ways to make a model's folder unreadable; each returns what is then said."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from llamas import WORDS, edit_config, edit_weights, save_tokenizer
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration


def broken_empty(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "has no weights"


def broken_pickle(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pytorch_model.bin.*pickle checkpoints are not read.*convert to safetensors"


def broken_adapter(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return "not the weights of a whole model"


def broken_truncated(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "broken or cut short"


def broken_no_bytes(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"")
    return "broken or cut short"


def broken_index(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    return "lists no files"


def broken_no_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").unlink()
    return "no tokenizer"


def broken_tokenizer(folder: Path) -> str:
    (folder / "tokenizer.json").write_text("{}")
    return "the tokenizer in .* cannot be read"


def broken_tokenizer_settings(folder: Path) -> str:
    (folder / "tokenizer_config.json").write_text("[]")
    return "tokenizer_config.json holds no JSON object"


def broken_tokenizer_code(folder: Path) -> str:
    mine = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(mine))
    return "the tokenizer in .* pass --trust-remote-code"


def broken_generation_settings(folder: Path) -> str:
    (folder / "generation_config.json").write_text("[]")
    return "generation_config.json holds no JSON object"


def broken_activation(folder: Path) -> str:
    edit_config(folder, hidden_act="nope")
    return "cannot be read: KeyError: 'nope'"


def broken_large_tokenizer(folder: Path) -> str:
    save_tokenizer(folder, WORDS + [f"word{i}" for i in range(20)])
    return "28 tokens, the model only 16 embeddings"


def broken_no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "no config.json"


def broken_config(folder: Path) -> str:
    (folder / "config.json").write_text('{"model_type": "llama",')
    return "config.json cannot be read"


def broken_config_kind(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "no JSON object"


def broken_config_depth(folder: Path) -> str:
    (folder / "config.json").write_text("[" * 100_000)
    return "config.json cannot be read"


def broken_config_architectures(folder: Path) -> str:
    edit_config(folder, architectures=5)
    return "config.json: architectures is 5"


def broken_config_names(folder: Path) -> str:
    edit_config(folder, architectures=[["LlamaForCausalLM"]])
    return "config.json: architectures is"


def broken_config_code(folder: Path) -> str:
    edit_config(folder, auto_map=["AutoConfig"])
    return "config.json: auto_map is"


def broken_config_type(folder: Path) -> str:
    edit_config(folder, model_type={"name": "llama"})
    return "config.json: model_type is"


def broken_index_names(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3, "b": ["c"]}}')
    return "index.json: its weight_map gives more than names"


def broken_index_place(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    return "index.json: its weight_map gives more than names"


def broken_index_length(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "%s"}}' % ("n" * 300))
    return "index.json: 1 of 1 file is missing"


def broken_body(folder: Path) -> str:
    edit_config(folder, architectures=["LlamaModel"])
    return "is a LlamaModel, not a .*: it has no output layer; LlamaForCausalLM is the whole model"


def broken_eyes(folder: Path) -> str:
    edit_config(folder, architectures=["Mistral3ForConditionalGeneration"], model_type="mistral3", vision_config={})
    return "is a Mistral3ForConditionalGeneration, not a .*: it reads more than text"


def broken_config_value(folder: Path) -> str:
    edit_config(folder, hidden_size="wide")
    return "the model in .* cannot be read"


def broken_shapes(folder: Path) -> str:
    edit_config(folder, intermediate_size=64)
    return (
        r"layers\.0\.mlp\.down_proj\.weight has shape \(32, 48\) in the weights, but \(32, 64\) by config\.json "
        r"\(intermediate_size=64\) \(5 more differ\)"
    )


def broken_heads(folder: Path) -> str:
    edit_config(folder, num_key_value_heads=1)
    return r"k_proj\.weight has shape \(16, 32\) .* but \(8, 32\) by config\.json \(num_key_value_heads=1\) \(3 more"


def broken_biases(folder: Path) -> str:
    bias = {f"model.layers.{i}.self_attn.{name}_proj.bias": torch.ones(4) for i in (0, 1) for name in "qkvo"}
    edit_weights(folder, lambda weights: weights.update(bias))
    return r"holds 8 weights \(model\.layers\.0\.self_attn\.k_proj\.bias, .*, …\).*no place.*attention_bias=true"


def broken_further_layer(folder: Path) -> str:
    edit_config(folder, num_hidden_layers=1)
    return r"holds 9 weights \(model\.layers\.1\..* no place"


def broken_layers(folder: Path) -> str:
    edit_config(folder, num_hidden_layers=10**9)
    return "num_hidden_layers=1000000000, but the weights are those of 2 layers"


def broken_width(folder: Path) -> str:
    edit_config(folder, intermediate_size=10**12)
    return "intermediate_size=1000000000000, more than there are weights in all"


def broken_vocabulary(folder: Path) -> str:
    edit_config(folder, vocab_size=10_000)
    return "vocab_size=10000, hidden_size=32: a matrix of those is larger than all weights"


def broken_head_width(folder: Path) -> str:
    edit_config(folder, num_attention_heads=5000, head_dim=5000)
    return "num_attention_heads=5000, head_dim=5000, hidden_size=32: a matrix of those is larger"


def broken_layer_width(folder: Path) -> str:
    edit_config(folder, model_type="polyprune_llama", per_layer_config={"1": {"num_attention_heads": 10**10}})
    return "num_attention_heads=10000000000, more than"


def broken_number_format(folder: Path) -> str:
    edit_weights(folder, lambda weights: weights.update({name: t.to(torch.int8) for name, t in weights.items()}))
    return "model holds weights of type I8; pruning needs floating-point ones"


def broken_quantised_of_ours(folder: Path) -> str:
    edit_config(folder, model_type="polyprune_llama", quantization_config={"quant_method": "gptq"})
    return "model holds gptq weights"


def broken_kernel(folder: Path) -> str:
    edit_config(folder, attn_implementation="owner/kernel")
    return r"model is a LlamaForCausalLM whose code comes with it \(attn_implementation\)"


def broken_other_weights(folder: Path) -> str:
    edit_config(folder, transformers_weights="other.safetensors")
    return "model.config.json names weights of another file, transformers_weights='other.safetensors'"


def broken_beside_an_adapter(folder: Path) -> str:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return "holds an adapter besides a model"


def broken_missing_weights(folder: Path) -> str:
    edit_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "layernorm" in name])
    return r"lacks 4 weights \(model\.layers\.0\.input_layernorm\.weight, .*, …\) of LlamaForCausalLM.*would be random"


def broken_unknown(folder: Path) -> str:
    edit_config(folder, model_type="quantum", architectures=["QuantumForCausalLM"])
    return "'quantum', which transformers .* does not know"


def broken_no_type(folder: Path) -> str:
    (folder / "config.json").write_text("{}")
    return "model_type ''"


def broken_quantised(folder: Path) -> str:
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    return "holds gptq weights; pruning needs the floating-point model"


def broken_encoder(folder: Path) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=16, **sizes)).save_pretrained(folder)
    return "BertForMaskedLM, not a decoder-only language model"


def broken_encoder_decoder(folder: Path) -> str:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 16}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)
    return "T5ForConditionalGeneration, not a decoder-only language model"
