"""Folders and files that cannot be read are one clear error each; code that comes with one runs only when trusted."""

from __future__ import annotations

import damages
import pytest
import torch
from llamas import edit_config, edit_weights
from transformers import LlamaForCausalLM

from polyprune_core.errors import ModelError
from polyprune_core.models import reading
from polyprune_core.models.sources import load_model, resolve

MODELING = """
from transformers import LlamaForCausalLM
class OwnLlama(LlamaForCausalLM):
    pass
"""


@pytest.mark.parametrize("damage", [f for name, f in vars(damages).items() if name.startswith("broken_")])
def test_a_folder_that_cannot_be_used_is_one_model_error(folder, damage):
    message = damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert "model" in str(caught.value)


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.safetensors", "w.txt"])
def test_a_single_file_is_refused_unless_it_is_gguf(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    message = "Give the folder" if name.endswith(("s", "txt")) else "pickle checkpoints are not read"
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / name))


def test_code_that_comes_with_a_model_runs_only_when_trusted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "modeling_own.py").write_text(MODELING)
    edit_config(folder, architectures=["OwnLlama"], auto_map={"AutoModelForCausalLM": "modeling_own.OwnLlama"})
    with pytest.raises(ModelError, match=r"OwnLlama whose code comes with it.*--trust-remote-code"):
        load_model(str(folder), device="cpu")
    loaded = load_model(str(folder), device="cpu", trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnLlama"


def test_a_known_class_needs_no_trust_even_if_the_model_offers_code(folder):
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnLlama"})
    told: list[str] = []
    assert type(load_model(str(folder), device="cpu", status=told.append).model) is LlamaForCausalLM
    assert "without the code that comes with it" in told[0]


@pytest.mark.parametrize("missing", [("sentencepiece",), ("google.protobuf",), ("sentencepiece", "google.protobuf")])
def test_a_sentencepiece_tokenizer_alone_names_the_packages_that_read_it(folder, monkeypatch, missing):
    """transformers would ask for tiktoken, whose files have the same name and begin otherwise."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setattr(reading, "_installed", lambda module: module not in missing)
    names = " and ".join(name.removeprefix("google.") for name in missing)
    with pytest.raises(ModelError, match=rf"SentencePiece model .*, which {names} reads?: pip install"):
        load_model(str(folder), device="cpu")


def test_where_those_packages_are_is_found_without_importing_them():
    assert reading._installed("torch")
    assert not reading._installed("nothing_here.protobuf")


def test_weights_that_transformers_itself_leaves_out_are_no_fault(folder):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    edit_weights(folder, lambda weights: weights.update(buffer))
    assert load_model(str(folder), device="cpu").sha256


def test_a_folder_of_ours_that_is_broken_is_not_said_to_need_trust(folder):
    edit_config(folder, model_type="polyprune_llama", per_layer_config={"0": {"skip": ["mlp"]}}, polyprune=5)
    edit_config(folder, auto_map={"AutoConfig": "modeling_polyprune.PolypruneLlamaConfig"})
    with pytest.raises(ModelError, match="polyprune is 5") as caught:
        load_model(str(folder), device="cpu")
    assert "trust" not in str(caught.value)
