"""GGUF files become folders with the same logits, once; one that cannot be read is one error."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from llamas import tiny_model
from transformers import LlamaForCausalLM

from polyprune_core.errors import ModelError
from polyprune_core.models.sources import load_model, resolve


def write_gguf(path: Path, model: LlamaForCausalLM, *, leave_out: str = "") -> None:
    """The model as a float32 GGUF file with a byte-level vocabulary of 16 tokens and no merges."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*"abcdefghijkl12Ġ", "ĠĠ"])
    writer.add_token_types([1] * 16)
    writer.add_token_merges(["Ġ Ġ"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                # llama.cpp keeps the two halves of each head's rotary pairs interleaved.
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        if not (leave_out and leave_out in name):
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_folder_with_the_same_logits_once(tmp_path, monkeypatch):
    model = tiny_model().eval()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model)
    loaded = load_model(str(file), dtype="float32", device="cpu")
    tokens = torch.arange(16)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, model(tokens).logits, rtol=0, atol=1e-6)
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.tokenize("ab  12") == ["a", "b", "ĠĠ", "1", "2"]
    monkeypatch.setattr("polyprune_core.models.convert.convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert resolve(str(shutil.copy(file, tmp_path / "renamed.gguf"))) == loaded.path


@pytest.mark.parametrize("damage", ["not gguf", "cut short", "weights left out"])
def test_a_gguf_file_that_cannot_be_read_is_one_model_error(tmp_path, damage, own_cache):
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_model(), leave_out="mlp.up_proj" if damage == "weights left out" else "")
    data = file.read_bytes()
    file.write_bytes({"not gguf": b"GGML" + data[4:], "cut short": data[:-2000]}.get(damage, data))
    said = {"not gguf": "is not a GGUF file", "weights left out": "lacks 2 weights"}.get(
        damage, "cannot be read as a GGUF"
    )
    with pytest.raises(ModelError, match=said):
        resolve(str(file))
    assert not [path for path in own_cache.rglob("*") if path.is_dir() and path.parent.name == "models"]


def test_what_a_gguf_file_needs_is_asked_for_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("polyprune_core.models.convert.find_spec", lambda name: None if name == "accelerate" else name)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="needs accelerate: pip install accelerate"):
        resolve(str(tmp_path / "a.gguf"))
