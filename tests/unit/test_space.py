"""What units are, what they cost, and which entries they own."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.errors import ConfigError, ModelError, PluginError
from polyprune_core.models.describe import describe
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import compact_state_dict
from polyprune_core.pruning.types import UnitGroup
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp

CHOICES = {
    "channel": (Channel(),),
    "channels in threes": (Channel(block=3),),
    "head": (Head(),),
    "head and channel": (Head(), Channel()),
    "attention": (Attention(),),
    "mlp": (Mlp(),),
    "layer": (Layer(),),
    "attention and mlp": (Attention(), Mlp()),
    "one block a layer": (Channel(block=1000),),
}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def removed_parameters(model, space: MaskSpace, keep: torch.Tensor) -> int:
    state = compact_state_dict(model, space.layout, space.axis_keep(keep))
    return sum(p.numel() for p in model.parameters()) - sum(t.numel() for t in state.values())


@choices
def test_the_cost_of_a_unit_is_what_removing_it_alone_removes(model, space_of, choice) -> None:
    space = space_of(model, *choice)
    some = {unit for where in space.slices() for unit in (where.start, (where.start + where.stop) // 2, where.stop - 1)}
    for unit in sorted(some):
        keep = torch.ones(len(space), dtype=torch.bool)
        keep[unit] = False
        assert removed_parameters(model, space, keep) == space.cost[unit]


@choices
@pytest.mark.parametrize("seed", range(3))
def test_costs_add_up_while_every_group_of_several_units_keeps_one(model, space_of, choice, seed) -> None:
    space = space_of(model, *choice)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < 0.4
    for where, group in zip(space.slices(), space.groups, strict=True):
        if group.count > 1:
            keep[where.start + seed] = True
    assert removed_parameters(model, space, keep) == space.cost[~keep].sum()


@choices
def test_the_prunable_total_is_the_cost_of_all_units(model, space_of, choice) -> None:
    space = space_of(model, *choice)
    assert space.total_cost == int(space.cost.sum()) < space.layout.total_parameters
    assert space.cost.dtype == torch.float64
    assert (space.cost > 0).all()


def test_whole_layers_cost_everything_but_embeddings_head_and_last_norm(model, space_of) -> None:
    space = space_of(model, Layer())
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("model.layers."))
    assert space.total_cost == space.layout.total_parameters - outside


@choices
def test_every_unit_has_its_group_kind_and_layer_in_order(model, space_of, choice) -> None:
    space = space_of(model, *choice)
    assert len(space) == sum(group.count for group in space.groups) == len(space.cost)
    for index, (where, group) in enumerate(zip(space.slices(), space.groups, strict=True)):
        assert (space.group[where] == index).all()
        assert (space.layer[where] == group.layer).all()
        assert {space.kinds[kind] for kind in space.kind[where].tolist()} == {group.kind}


def test_the_layout_of_every_family_is_the_one_it_was_built_with(model) -> None:
    layout = describe(model)
    assert layout.num_layers == 3
    assert layout.total_parameters == model.num_parameters()
    assert [axis.size for axis in layout.of_kind("attention")] == [3, 3, 3]
    assert [axis.size for axis in layout.of_kind("mlp")] == [70, 70, 70]


def test_peers_are_the_units_of_one_layer_and_kind_or_whole_sublayers_of_one_kind(llama, space_of) -> None:
    space = space_of(llama, Head(), Mlp())
    heads, mlps = space.peers[:9], space.peers[9:]
    assert torch.equal(heads, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    assert mlps.unique().numel() == 1
    assert not torch.isin(mlps, heads).any()


@choices
@pytest.mark.parametrize("seed", range(3))
def test_the_entries_that_stay_are_those_of_the_units_that_stay(model, space_of, choice, seed) -> None:
    space = space_of(model, *choice)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < 0.5
    entries = space.axis_keep(keep)
    assert tuple(entries) == space.axes
    back = torch.zeros(len(space))
    for where, group in zip(space.slices(), space.groups, strict=True):
        for axis, per_unit in group.spans:
            size = space.layout.axis[axis].size
            assert entries[axis].shape == (size,)
            for entry in range(size):
                unit = where.start + entry // per_unit
                assert entries[axis][entry] == keep[unit]
                back[unit] += 1
    assert (back > 0).all()


def test_the_last_block_owns_the_remainder(llama, space_of) -> None:
    space = space_of(llama, Channel(block=3))
    assert space.groups[0].count == 24  # 23 * 3 + 1 = 70
    assert space.cost[23] * 3 == space.cost[0]
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[23] = False
    assert (~space.axis_keep(keep)["layers.0.mlp"]).nonzero().tolist() == [[69]]


@choices
def test_weights_are_summed_as_a_loop_over_units_would(model, space_of, choice) -> None:
    space = space_of(model, *choice)
    weights = {name: p.detach().double() ** 3 for name, p in model.named_parameters()}
    expected = torch.zeros(len(space), dtype=torch.float64)
    for where, group in zip(space.slices(), space.groups, strict=True):
        for axis, per_unit in group.spans:
            for cut in space.layout.axis[axis].cuts:
                for unit in range(group.count):
                    start = unit * per_unit * cut.width
                    span = slice(start, start + per_unit * cut.width)
                    part = weights[cut.parameter][span] if cut.dim == 0 else weights[cut.parameter][:, span]
                    expected[where.start + unit] += part.sum()
    found = space.sum_weights(weights.__getitem__)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)  # the result is float32


@choices
def test_reader_columns_are_summed_as_a_loop_over_units_would(model, space_of, choice) -> None:
    space = space_of(model, *choice)
    expected = torch.zeros(len(space), dtype=torch.float64)
    for where, group in zip(space.slices(), space.groups, strict=True):
        for name, per_unit in group.spans:
            axis = space.layout.axis[name]
            weight = model.get_submodule(axis.reader).weight.double()
            width = per_unit * axis.reader_width
            for column in range(weight.shape[1]):
                expected[where.start + column // width] += weight[:, column].abs().max() * (1 + axis.layer)

    def importance(name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.abs().amax(dim=0) * (1 + space.layout.axis[name].layer)

    found = space.sum_columns(model, importance)
    # Float32 sums over the columns of an entry.
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)


def test_entries_are_summed_over_all_axes_of_a_unit(llama, space_of) -> None:
    space = space_of(llama, Layer())
    values = {axis.name: torch.arange(axis.size) + 100.0 * axis.layer for axis in space.layout.axes}
    expected = [3 + 2415 + 73 * 100 * layer for layer in range(3)]
    assert space.sum_entries(values).tolist() == expected


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ((Head(), Attention()), ("head", "attention")),
        ((Attention(), Layer()), ("attention", "layer")),
        ((Channel(), Mlp()), ("channel", "mlp")),
        ((Layer(), Channel(block=3)), ("layer", "channel")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value[0], str) else "",
)
def test_two_granularities_that_remove_the_same_entries_are_refused_by_name(llama, space_of, choice, names) -> None:
    with pytest.raises(ConfigError, match=rf"'{names[0]}' and '{names[1]}' both remove layers\.0\."):
        space_of(llama, *choice)


def test_one_granularity_twice_is_refused(llama, space_of) -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        space_of(llama, Head(), Head())


def test_a_space_without_units_is_refused(llama) -> None:
    with pytest.raises(ConfigError, match="no unit"):
        MaskSpace(describe(llama), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4, "hidden_size": 96}, "96 rows .* among 4 entries of 16"),
        ({"num_hidden_layers": 0}, "0 layers"),
    ],
)
def test_a_model_that_cannot_be_cut_into_units_is_refused(tiny, changes, message) -> None:
    model = tiny("llama", head_dim=16, **changes)
    with pytest.raises(ModelError, match=message):
        describe(model)


@pytest.mark.parametrize(
    ("count", "span", "message"),
    [
        (70, ("layers.0.nothing", 1), r"'bad' names axis 'layers\.0\.nothing'"),
        (70, ("layers.0.mlp", 0), "70 units of 0"),
        (70, ("layers.0.mlp", -1), "70 units of -1"),
        (69, ("layers.0.mlp", 1), "70 entries of layers.0.mlp into 69 units of 1; 70 are needed"),
        (23, ("layers.0.mlp", 3), "23 units of 3; 24 are needed"),
        (25, ("layers.0.mlp", 3), "25 units of 3; 24 are needed"),
        (0, ("layers.0.mlp", 1), "0 units of 1; 70 are needed"),
    ],
)
def test_spans_that_do_not_fit_their_axis_are_refused_with_what_is_needed(llama, count, span, message) -> None:
    with pytest.raises(PluginError, match=message):
        MaskSpace(describe(llama), [UnitGroup("bad", 0, count, (span,))])
