"""Query heads within KV heads, and experts with their router: what is scored, kept and counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from polyprune_core.errors import BudgetError, ConfigError
from polyprune_core.models.describe import describe
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import select
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace, said_of
from polyprune_core.pruning.surgery import Compactor, compact_state_dict
from polyprune_core.testing.tiny import logits_of, tiny_base, tiny_calibration, tiny_model, tiny_pruned
from polyprune_core.utils.rng import generator
from polyprune_plugins.exporters.huggingface import HuggingFace
from polyprune_plugins.exporters.masked import Masked
from polyprune_plugins.granularities.auto import Auto
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.expert import Expert
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.query_head import QueryHead
from polyprune_plugins.initializers.flap import Flap
from polyprune_plugins.initializers.frequency import Frequency
from polyprune_plugins.initializers.obs import Obs
from polyprune_plugins.initializers.reap import Reap
from polyprune_plugins.initializers.thinet import ThiNet
from polyprune_plugins.initializers.wanda import Wanda
from polyprune_plugins.repairs.sequential import Sequential


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
    with pytest.raises(ConfigError, match=r"both remove layers.0.expert.*prune twice"):
        space_of(tiny_model("mixtral"), Expert(), Channel())


def test_a_falcon_query_head_leaves_the_rows_of_keys_and_values() -> None:
    model = tiny_model("falcon")  # of each of 3 KV heads: two queries, key, value, 6 rows each
    space = space_of(model, QueryHead())
    kept = compact_state_dict(model, space.layout, space.axis_keep(torch.tensor([False, True] * 3)))
    rows = [24 * group + row for group in range(3) for row in range(6, 24)]
    name = "transformer.h.1.self_attention.query_key_value.weight"
    assert torch.equal(kept[name], model.get_parameter(name)[rows])
    assert space.cost.tolist() == [2 * 3 * 6 * 36.0 + 3 * 6] * 6  # and the bias of q


def test_one_kv_head_of_all_queries_in_the_older_falcon() -> None:
    model = tiny_model("falcon", new_decoder_architecture=False, multi_query=True)
    space = space_of(model, QueryHead())
    assert [group.count for group in space.groups] == [6, 6, 6]
    keep = space.axis_keep(torch.rand(18, generator=generator(0, "older falcon")) < 0.5)
    with gated(model, space.layout, keep):
        expected = logits_of(model)
    with Compactor(model, space.layout) as compactor, compactor.applied(keep):
        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-5)


def test_heads_with_slopes_of_their_own_go_together() -> None:
    layout = describe(tiny_model("falcon", alibi=True))
    assert not Head().groups(layout)
    assert not QueryHead().groups(layout)


def test_one_expert_of_every_group_where_the_router_chooses_groups_first() -> None:
    space = space_of(tiny_model("deepseek_v3"), Expert())  # two groups of four, two chosen of one group
    assert [group.count for group in space.groups] == [4, 4]
    assert space.groups[0].spans[0][1][1] == (1, 5)
    assert space.floors == (2, 2)


@pytest.mark.parametrize(
    ("model_type", "granularity", "told"),
    [
        ("deepseek_v3", "head", r"self_attn \(multi-head latent attention\) cannot be cut"),
        ("falcon_h1", "expert", r"mamba \(a Mamba block\) cannot be cut"),
        ("gpt2", "query-head", r"no KV head serves several query heads, so that a query head is a head"),
    ],
)
def test_a_model_without_such_units_is_refused_by_the_reason(model_type, granularity, told) -> None:
    with pytest.raises(ConfigError, match=told):
        load_registry().space(granularity, describe(tiny_model(model_type)))


def side_by_side(model, layer):
    """Returns the weighted inner features (tokens, E * 24) of a layer's experts, and their last maps (36, E * 24)."""
    hidden, index, weight = choices_of(model, layer)
    experts, rows = model.model.layers[layer].mlp.experts, []
    for expert in range(len(experts.down_proj)):
        gate, up = (hidden @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        share = (weight * (index == expert)).sum(-1, keepdim=True)
        rows.append(torch.nn.functional.silu(gate) * up * share)
    return torch.cat(rows, dim=-1), torch.cat(list(experts.down_proj), dim=-1)


def test_what_the_experts_take_in_gives_what_they_put_out() -> None:
    model = tiny_model("mixtral")
    calibration, seen = tiny_calibration(model), {}
    calibration.observe_readers(["layers.1.expert"], seen.__setitem__)
    features, weight = side_by_side(model, 1)
    torch.testing.assert_close(seen["layers.1.expert"], features, rtol=1e-4, atol=1e-5)
    outputs = []
    calibration.observe({"model.layers.1.mlp.experts": lambda _inputs, output: outputs.append(output)})
    torch.testing.assert_close(features @ weight.T, outputs[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", [Expert(), Channel()])
def test_metrics_from_inputs_take_experts_for_one_linear_map(granularity) -> None:
    model = tiny_model("mixtral")
    space, calibration = space_of(model, granularity), tiny_calibration(model)
    features, weight = side_by_side(model, 1)
    table = torch.arange(6 * 24).view(6, 24) if isinstance(granularity, Expert) else torch.arange(6 * 24).view(6, 3, 8)
    columns = table if isinstance(granularity, Expert) else table.transpose(0, 1).flatten(1)
    place = space.slices()[1]
    wanda = weight.abs().mean(0) * features.square().mean(0).sqrt()
    torch.testing.assert_close(Wanda().score(model, space, calibration)[place], wanda[columns].sum(1))
    first = min(
        range(len(columns)),
        key=lambda unit: float((features[:, columns[unit]] @ weight[:, columns[unit]].T).square().sum()),
    )
    assert int(ThiNet().score(model, space, calibration)[place].argmin()) == first
    fluctuation = features.double().var(0) * weight.double().square().sum(0)
    flap = ((fluctuation - fluctuation.mean()) / fluctuation.std())[columns].mean(1)
    torch.testing.assert_close(Flap().score(model, space, calibration)[place], flap.float(), rtol=1e-3, atol=1e-4)


def test_obs_removes_the_expert_first_whose_error_after_the_refit_is_least() -> None:
    model = tiny_model("mixtral")
    space, calibration = space_of(model, Expert()), tiny_calibration(model)
    features, weight = (each.double() for each in side_by_side(model, 1))
    covariance = torch.cov(features.T, correction=0)
    inverse = torch.linalg.inv(covariance + 0.1 * covariance.diag().median() * torch.eye(6 * 24).double())
    owned = torch.arange(6 * 24).view(6, 24)
    errors = [float((weight[:, r] @ inverse[r][:, r].inverse() @ weight[:, r].T).trace()) for r in owned]
    found = Obs().score(model, space, calibration)[space.slices()[1]]
    assert int(found.argmin()) == errors.index(min(errors))


def test_active_parameters_leave_out_the_experts_that_a_token_is_not_sent_to(tmp_path) -> None:
    base = tiny_base(tmp_path / "dense", "mixtral")
    space = space_of(base.model, Expert())
    keep = torch.ones(18, dtype=torch.bool)
    keep[:3] = False
    pruned, one = tiny_pruned(base, space, keep), 3 * 24 * 36  # numbers of an expert; two run for a token
    assert pruned.active_parameters == pruned.parameters - (1 + 4 + 4) * one
    whole = tiny_pruned(base, space, torch.ones(18, dtype=torch.bool))
    assert whole.active_parameters == pruned.active_parameters + 3 * 36  # the rows of the router run for all tokens
    channels = space_of(base.model, Channel())
    halved = tiny_pruned(base, channels, torch.tensor([True, False, False] * 3))
    assert halved.active_parameters == halved.parameters - 3 * 4 * one // 3


def test_a_model_without_experts_is_active_as_a_whole(tmp_path) -> None:
    base = tiny_base(tmp_path / "dense")
    assert tiny_pruned(base, space_of(base.model, Head()), torch.ones(9, dtype=torch.bool)).active_parameters is None


def test_the_repair_layer_by_layer_fits_experts_to_what_the_router_now_sends_them(tmp_path) -> None:
    base = tiny_base(tmp_path / "dense", "mixtral")
    space = space_of(base.model, Expert())
    keep = torch.ones(18, dtype=torch.bool)
    keep[[13, 15]] = False  # of the last layer: nothing is lost before it
    pruned = tiny_pruned(base, space, keep)
    updates = Sequential(ridge=0.1).repair(pruned, tiny_calibration(base.model))
    outputs = []
    with base.model.model.layers[2].mlp.experts.register_forward_hook(lambda _m, _i, output: outputs.append(output)):
        logits_of(base.model)
    features, weight = (each.double() for each in side_by_side(pruned.build(), 2))
    products, cross = features.T @ features / 60, outputs[0].double().T @ features / 60
    ridge = 0.1 * products.diag().median() * torch.eye(4 * 24).double()
    expected = (cross + weight @ ridge) @ (products + ridge).inverse()
    found = torch.cat(list(updates["model.layers.2.mlp.experts.down_proj"]), dim=-1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
    repaired = dataclasses.replace(pruned, updates=updates)
    before, after = ((logits_of(each.build()) - logits_of(base.model)).norm() for each in (pruned, repaired))
    assert after < before
    assert not pruned.cut_readers()


@pytest.mark.parametrize(("model_type", "granularity"), [("mixtral", Channel()), ("llama", QueryHead())])
def test_the_repair_layer_by_layer_mends_what_is_divided_a_second_way(model_type, granularity, tmp_path) -> None:
    base = tiny_base(tmp_path / "dense", model_type)
    space = space_of(base.model, granularity)
    keep = torch.arange(len(space)) % 2 == 0
    pruned = tiny_pruned(base, space, keep)
    updates = Sequential().repair(pruned, tiny_calibration(base.model))
    repaired = dataclasses.replace(pruned, updates=updates)
    before, after = ((logits_of(each.build()) - logits_of(base.model)).norm() for each in (pruned, repaired))
    assert after < before


def test_formats_in_which_zeros_would_stand_for_experts_say_so_by_their_shapes() -> None:
    space = space_of(tiny_model("mixtral"), Expert())
    scores = torch.arange(18.0)
    even = select(scores, space, 0.4, "kind", shapes=HuggingFace(pad="widest").legal_shapes(space.layout)).keep
    assert [int(even[place].sum()) for place in space.slices()] == [3, 3, 3]
    with pytest.raises(BudgetError):
        select(scores, space, 0.4, "kind", shapes=Masked().legal_shapes(space.layout))
    assert not HuggingFace(pad="widest").legal_shapes(describe(tiny_model())).equal_widths
