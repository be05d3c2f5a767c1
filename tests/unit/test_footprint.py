"""What a model weighs, against what its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyprune_core.evaluation.footprint import footprint
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.budget import select
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import Scores
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head


def expected_macs(model, tokens: int) -> int:
    """Every linear layer on every token, and two products of queries or weights with a square of tokens a head."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    heads = sum(layer.self_attn.q_proj.out_features for layer in model.base_model.layers)
    return tokens * linear + 2 * tokens * tokens * heads


def test_the_footprint_is_what_the_configuration_says(model) -> None:
    before = model.config._attn_implementation
    found = footprint(model, [], 16)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes_in_memory == 4 * found.parameters
    assert found.bytes_on_disk is None
    assert found.kv_cache_bytes_per_token == 4 * describe(model).cached_values
    assert found.macs == expected_macs(model, 16)
    assert found.peak_memory_mb > 0
    assert model.config._attn_implementation == before


def test_a_pruned_model_weighs_what_is_left(llama, space_of) -> None:
    space = space_of(llama, Head(), Channel())
    scores = torch.rand(len(space), generator=torch.Generator().manual_seed(5))
    selection = select(scores, space, 0.4, "global")
    base = LoadedModel("tiny", llama, None, "", None)
    small = PrunedModel(base, space, selection, Scores(scores, "random")).build()
    found, dense = footprint(small, [], 16), footprint(llama, [], 16)
    assert dense.parameters - found.parameters == selection.total_cost - selection.kept_cost
    assert found.macs == expected_macs(small, 16) < dense.macs
    kept_heads = int(selection.keep[space.kind == 0].sum())
    assert found.kv_cache_bytes_per_token / dense.kv_cache_bytes_per_token == kept_heads / int((space.kind == 0).sum())


def test_bytes_on_disk_are_those_of_the_files(llama, tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 300)):
        (tmp_path / name).write_bytes(bytes(size))
    assert footprint(llama, [tmp_path / "a", tmp_path / "b"], 8).bytes_on_disk == 310


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_layout_knows_the_cache(tiny, family) -> None:
    layout = describe(tiny(family))
    assert {axis.kind for axis in layout.axes if axis.cached_values} == {"attention"}
