"""Query heads within KV heads, and experts with their router: what is scored, kept and counted."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.errors import ConfigError
from polyprune_core.models.describe import describe
from polyprune_core.pruning.budget import select
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace, said_of
from polyprune_core.testing.tiny import logits_of, tiny_calibration, tiny_model
from polyprune_plugins.granularities.auto import Auto
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.expert import Expert
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.query_head import QueryHead
from polyprune_plugins.initializers.frequency import Frequency
from polyprune_plugins.initializers.reap import Reap
from polyprune_plugins.initializers.thinet import ThiNet
from polyprune_plugins.initializers.wanda import Wanda


def space_of(model, *granularities, name=""):
    layout = describe(model)
    return MaskSpace(layout, [group for each in granularities for group in each.groups(layout)], name)


def test_a_unit_of_query_heads_is_one_of_every_kv_head() -> None:
    model = tiny_model()  # six query heads of six numbers over three KV heads
    space = space_of(model, QueryHead())
    assert [group.count for group in space.groups] == [2, 2, 2]
    assert space.axis_keep(torch.tensor([True, False] * 3))["layers.0.query"].tolist() == [True, False] * 3
    assert space.cost.tolist() == [2 * 3 * 6 * 36.0] * 6  # rows of q and columns of o, three heads each


def test_wanda_scores_query_heads_by_their_columns() -> None:
    model = tiny_model()
    space, calibration = space_of(model, QueryHead()), tiny_calibration(model)
    weight = model.model.layers[1].self_attn.o_proj.weight
    norm = calibration.input_norms(["model.layers.1.self_attn.o_proj"])["model.layers.1.self_attn.o_proj"]
    columns = (weight.abs().mean(dim=0) * norm).view(3, 2, 6).sum(dim=(0, 2))
    torch.testing.assert_close(Wanda().score(model, space, calibration)[2:4], columns)
    assert ThiNet().score(model, space, calibration).shape == (6,)


def test_heads_and_query_heads_of_one_attention_are_not_cut_together() -> None:
    with pytest.raises(ConfigError, match=r"'head' and 'query-head' both remove layers.0.attention"):
        space_of(tiny_model(), Head(), QueryHead())


def test_auto_takes_query_heads_where_kv_heads_are_few_and_says_so() -> None:
    few = tiny_model(num_key_value_heads=1)
    assert space_of(few, Auto()).kinds == ("query-head", "channel")
    assert space_of(tiny_model(), Auto()).kinds == ("head", "channel")
    assert space_of(tiny_model("qwen2_moe"), Auto()).kinds == ("head", "expert", "shared-channel", "channel")
    for model, parts in ((few, (QueryHead(), Channel())), (tiny_model(), (Head(), Channel()))):
        assert space_of(model, Auto()).groups == space_of(model, *parts).groups
    assert next(said_of(space_of(few, Auto(), name="auto"))).startswith("auto is 18 units of query-head and 210 units")
    (told,) = said_of(space_of(few, Head(), name="head"))
    assert told.startswith("3 layers have one unit of head each: a budget for head empties whole attention sublayers")


def test_a_layer_keeps_as_many_experts_as_the_router_chooses_whatever_they_score() -> None:
    space = space_of(tiny_model("mixtral"), Expert())
    scores = torch.arange(18.0)
    kept = select(scores, space, 0.6, "kind", min_keep=0).keep
    assert [int(kept[place].sum()) for place in space.slices()] == [2, 2, 3]


def routed(model, layer, left):
    """Returns a hook-free reference: the router's logits of the others set to minus infinity by its own arithmetic."""
    gate = model.model.layers[layer].mlp.gate

    def forward(hidden):
        logits = hidden @ gate.weight.T
        logits[:, ~left] = -torch.inf
        values, indices = logits.float().softmax(-1).topk(gate.top_k, dim=-1)
        return logits, values / values.sum(-1, keepdim=True), indices

    return gate, forward


def test_without_an_expert_the_router_chooses_among_the_others(monkeypatch) -> None:
    model = tiny_model("mixtral")
    left = torch.tensor([True, False, True, True, False, True])
    with gated(model, describe(model), {"layers.1.expert": left}):
        found = logits_of(model)
    gate, forward = routed(model, 1, left)
    monkeypatch.setattr(gate, "forward", forward)
    torch.testing.assert_close(found, logits_of(model), rtol=0, atol=1e-5)


def choices_of(model, layer):
    """Returns hidden states, indices and weights of one layer's experts on the calibration text."""
    seen = []
    with model.model.layers[layer].mlp.experts.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs)):
        logits_of(model)
    return seen[0]


def test_frequency_is_the_share_of_tokens_and_reap_what_is_added_where_chosen() -> None:
    model = tiny_model("qwen3_moe")
    space, calibration = space_of(model, Expert()), tiny_calibration(model)
    hidden, index, weight = choices_of(model, 2)
    shares = torch.stack([(index == expert).any(-1).float().mean() for expert in range(6)])
    place = space.slices()[-1]
    torch.testing.assert_close(Frequency().score(model, space, calibration)[place], shares)
    experts, expected = model.model.layers[2].mlp.experts, []
    for expert in range(6):
        tokens, order = (index == expert).nonzero(as_tuple=True)
        gate, up = (hidden[tokens] @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        output = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
        expected.append((output.norm(dim=-1) * weight[tokens, order]).mean() if len(tokens) else torch.tensor(0.0))
    found = Reap().score(model, space, calibration)[place]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_other_units_beside_experts_are_scored_by_another_metric() -> None:
    model = tiny_model("mixtral")
    calibration, both = tiny_calibration(model), space_of(model, Head(), Expert())
    scores = Reap().score(model, both, calibration)
    heads = Wanda().score(model, space_of(model, Head()), calibration)
    torch.testing.assert_close(scores[:9], heads)


def test_experts_and_their_channels_are_not_cut_together() -> None:
    with pytest.raises(ConfigError, match=r"both remove layers.0.expert"):
        space_of(tiny_model("mixtral"), Expert(), Channel())
