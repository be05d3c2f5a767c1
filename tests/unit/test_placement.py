"""Weights that stay in their files, or lie in several places: the model is the same, and less of it is in memory."""

from __future__ import annotations

import pytest
import torch

from polyprune_core import prune
from polyprune_core.config.execution import bytes_of, limits_of
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.evaluation.losses import token_losses
from polyprune_core.models.describe import describe
from polyprune_core.models.placement import Placement, pick_device, placed
from polyprune_core.models.placing import connect, is_in_file
from polyprune_core.models.sources import load_model
from polyprune_core.pruning.surgery import Compactor, compact_state_dict


def halved(layout) -> dict[str, torch.Tensor]:
    return {axis.name: torch.arange(axis.size) % 2 == 0 for axis in layout.axes}


def test_weights_beyond_the_limit_stay_in_their_files_and_the_model_is_the_same() -> None:
    usual = load_model("tiny", dtype="auto", device="cpu").model
    stored = str(usual.dtype).removeprefix("torch.")
    with placed(Placement(limits={"cpu": 1_000_000})):
        partly = load_model("tiny", dtype=stored, device="cpu").model
    inside = sum(p.nbytes for p in partly.parameters() if not is_in_file(p))
    assert 0 < inside <= 1_000_000 < sum(p.nbytes for p in partly.parameters())
    assert not any(map(is_in_file, usual.parameters()))
    layout, ids = describe(usual), torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    losses = []
    for model in (usual, partly):
        with Compactor(model, layout) as compactor, torch.inference_mode():
            for keep in ({}, halved(layout)):
                with compactor.applied(keep) as applied:
                    losses.append(token_losses(applied, ids))
    assert torch.equal(losses[2], losses[0])
    assert torch.allclose(losses[3], losses[1], atol=0.02)  # without rows of zeros another kernel may run
    ours, theirs = (compact_state_dict(model, layout, halved(layout)) for model in (partly, usual))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_nothing_is_laid_out_anew_of_what_stays_in_its_file() -> None:
    with placed(Placement(limits={"cpu": 0})):
        model = load_model("tiny", device="cpu").model
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    with Compactor(model, describe(model)):
        assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places


def test_weights_that_are_computed_in_another_format_cannot_stay_in_their_files() -> None:
    with placed(Placement(limits={"cpu": 0})), pytest.raises(ModelError, match="give --dtype bfloat16, or more"):
        load_model("tiny", dtype="float32", device="cpu")


def test_a_model_left_in_its_files_is_written_by_shard_as_the_one_in_memory_is(tmp_path) -> None:
    asked = {"model": "tiny", "initializer": "magnitude", "sparsity": 0.3, "limit": 2, "scope": "kind", "scale": "raw"}
    asked |= {"calibration_samples": 2, "seq_len": 32, "eval_seq_len": 32, "dtype": "bfloat16", "quiet": True}
    whole = prune(output=tmp_path / "whole", **asked)
    exporter = "huggingface:max_shard_size=400KB"
    parts = prune(output=tmp_path / "parts", max_memory="cpu=1MB", exporter=exporter, **asked)
    assert torch.equal(parts.pruned.selection.keep, whole.pruned.selection.keep)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2 > len(list((tmp_path / "whole").glob("model-*")))
    ours, theirs = (load_model(str(tmp_path / name)).model.state_dict() for name in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_parts_that_are_connected_by_accelerate_compute_the_same_under_masks() -> None:
    usual, split = (load_model("tiny", device="cpu").model for _ in range(2))
    layout, ids = describe(usual), torch.arange(24)[None]
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    parts += [f"{layout.layers}.{index}" for index in range(layout.num_layers)]
    connect(split, dict.fromkeys(parts, "cpu"))
    with torch.inference_mode():
        found = []
        for model in (usual, split):
            with Compactor(model, layout) as compactor, compactor.applied(halved(layout)) as applied:
                found.append(token_losses(applied, ids))
    assert torch.equal(*found)


def test_sizes_and_limits_are_read_and_refused_by_name() -> None:
    assert (bytes_of("8GB"), bytes_of("1.5 GiB"), bytes_of("12")) == (8 * 10**9, 3 * 2**29, 12)
    assert limits_of("cpu=1GB, cuda:1=2MB") == {"cpu": 10**9, "cuda:1": 2 * 10**6}
    for wrong in ("8", "gpu=1GB", "cpu=much"):
        with pytest.raises(ConfigError):
            limits_of(wrong)
    with pytest.raises(ConfigError, match="cuda:0 is about --device-map auto"):
        Comparison(max_memory="cuda:0=1GB")
    with pytest.raises(ConfigError, match="mps, the GPU of Apple's processors, is not supported"):
        pick_device("mps")
