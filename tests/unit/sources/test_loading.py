"""What a loaded model is: ready to prune, known by the sha256 of its files, of a dtype and on a device."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llamas import edit_weights, tiny_model

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models import placement
from polyprune_core.models.sources import load_model


def test_a_loaded_model_is_ready_to_prune(folder):
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    assert loaded.path == folder
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    assert not loaded.model.config.use_cache
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("a b c").input_ids == [1, 2, 3]
    assert torch.equal(loaded.model.lm_head.weight, tiny_model().lm_head.weight)


def test_the_sha256_is_of_the_file_whatever_dtype_is_asked_for(folder):
    of_file = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = load_model(str(folder), dtype=dtype, device="cpu")
        assert loaded.model.dtype == getattr(torch, dtype)
        assert loaded.sha256 == of_file


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_model_knows_the_number_format_of_its_files_and_reads_them_again_in_it(folder, stored):
    tiny_model().to(stored).save_pretrained(folder)
    loaded = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert (loaded.model.dtype, loaded.stored_dtype) == (torch.bfloat16, stored)
    again = loaded.as_stored().model
    assert again.dtype == stored
    assert torch.equal(again.lm_head.weight, tiny_model().to(stored).lm_head.weight)


def test_files_that_have_changed_since_are_not_taken_for_the_model(folder):
    loaded = load_model(str(folder), dtype="bfloat16", device="cpu")
    edit_weights(folder, lambda weights: weights["model.norm.weight"].add_(1))
    with pytest.raises(ModelError, match="have changed since"):
        loaded.as_stored()


def test_a_sharded_model_loads_and_its_sha256_covers_every_shard_in_order(made_once, tmp_path):
    folder = Path(shutil.copytree(made_once, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    tiny_model().save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    contents = b"".join(shard.read_bytes() for shard in shards)
    assert load_model(str(folder), device="cpu").sha256 == hashlib.sha256(contents).hexdigest()
    shards[0].unlink()
    with pytest.raises(ModelError, match=f"1 of 4 files is missing.*{shards[0].name}"):
        load_model(str(folder), device="cpu")


def test_loading_leaves_the_libraries_as_loud_as_they_were(folder, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(folder), device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_imports_neither_torch_nor_transformers():
    code = "import sys, polyprune_core.models.sources; print({'torch', 'transformers'} & set(sys.modules) or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "light"


@pytest.mark.parametrize(("option", "value"), [("dtype", "fp32"), ("device", "gpu"), ("device", "cuda:x")])
def test_an_unknown_dtype_or_device_names_the_allowed_ones(folder, option, value):
    with pytest.raises(ConfigError, match=f"no {option} named '{value}'.*auto"):
        load_model(str(folder), **{option: value})


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        placement.pick_device("cuda:1")
    assert placement.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("found", [{"amx_bf16": True}, {"avx2": True}])
@pytest.mark.parametrize("stored", ["float64", "float32", "bfloat16", "float16"])
def test_auto_dtype_is_the_models_own_or_float32_where_the_cpu_does_not_compute_in_it(monkeypatch, stored, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    native = stored == "bfloat16" and "amx_bf16" in found
    expected = torch.bfloat16 if native else torch.float32
    assert placement.pick_dtype("auto", torch.device("cpu"), stored) == expected
    assert placement.pick_dtype("float16", torch.device("cpu"), stored) == torch.float16
