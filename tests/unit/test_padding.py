"""Zeros in place of removed entries, for formats that hold some widths only: also of query heads and of experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from polyprune_core import padded
from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.testing.tiny import logits_of, tiny_base, tiny_model, tiny_pruned, tiny_tokenizer
from polyprune_plugins.exporters.huggingface import HuggingFace
from polyprune_plugins.exporters.masked import Masked
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.expert import Expert
from polyprune_plugins.granularities.query_head import QueryHead

# Twelve query heads over three KV heads are four units of query heads a layer.
TINY: dict[str, dict[str, Any]] = {"llama": {"num_attention_heads": 12, "head_dim": 4}, "falcon": {}, "qwen3": {}}


def pruned_of(base, granularities, removed):
    layout = describe(base.model)
    space = MaskSpace(layout, [group for each in granularities for group in each.groups(layout)], "units")
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[list(removed)] = False
    return tiny_pruned(base, space, keep)


def base_of(folder, family):
    tiny_model(family, **TINY[family]).save_pretrained(folder / family)
    tiny_tokenizer().save_pretrained(folder / family)
    return load_model(str(folder / family), dtype="float32", device="cpu")


@pytest.mark.parametrize("family", TINY)
def test_query_heads_are_filled_up_in_every_kv_head_and_nothing_else_is(family, tmp_path) -> None:
    pruned = pruned_of(base_of(tmp_path, family), [QueryHead()], [0])
    (view,) = [name for name, keep in pruned.axis_keep().items() if not keep.all()]
    blocks = pruned.layout.axis[view].blocks
    assert padded(pruned, {}).shapes() == pruned.shapes()
    filled = padded(pruned, {view: pruned.layout.axis[view].size})
    assert filled.axis_keep()[view].view(blocks, -1).all()
    torch.testing.assert_close(logits_of(filled.build()), logits_of(pruned.build()), rtol=0, atol=1e-5)
    kept = int(pruned.axis_keep()[view].sum())
    with pytest.raises(ModelError, match=f"cannot be padded to {kept + 1}; its {blocks} blocks are equally large"):
        padded(pruned, {view: kept + 1})


@pytest.mark.parametrize("exporter", [HuggingFace(pad="widest"), HuggingFace(pad=8), Masked()])
def test_what_is_padded_loads_with_the_familys_own_class_and_computes_the_same(exporter, tmp_path) -> None:
    pruned = pruned_of(
        base_of(tmp_path, "llama"), [QueryHead(), Channel()], [0, 1, 5, 9, *range(12, 18), *range(90, 94)]
    )
    ours = pruned.build()
    (tmp_path / "out").mkdir()
    trust = "trust_remote_code" in exporter.export(pruned, tmp_path / "out").reload
    assert trust is (exporter == HuggingFace(pad=8))  # its query heads differ still
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=trust)
    torch.testing.assert_close(logits_of(loaded), logits_of(ours), rtol=0, atol=1e-5)
    if exporter == HuggingFace(pad="widest"):
        assert loaded.config.num_attention_heads == 9
    if exporter == HuggingFace(pad=8):
        widths = [layer.mlp.down_proj.in_features for layer in loaded.model.layers]
        assert widths == [64, 70, 70]
        assert [layer.self_attn.q_proj.out_features for layer in loaded.model.layers] == [24, 36, 36]


def test_experts_are_not_filled_up_and_their_channels_are(tmp_path) -> None:
    base = tiny_base(tmp_path / "dense", "mixtral")
    channels = pruned_of(base, [Channel()], [1])
    filled = padded(channels, {"layers.0.expert-channel": 24})
    torch.testing.assert_close(logits_of(filled.build()), logits_of(channels.build()), rtol=0, atol=1e-5)
    assert filled.shapes()["model.layers.0.mlp.experts.down_proj"] == (6, 36, 24)
    with pytest.raises(ModelError, match="a router would choose among rows of zeros"):
        padded(pruned_of(base, [Expert()], [1]), {"layers.0.expert": 6})
