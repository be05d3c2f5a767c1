"""Metrics of whole sublayers against brute force: the greedy removal of SLEB, and ShortGPT's Block Influence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.models.describe import describe
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.utils.rng import generator
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp
from polyprune_plugins.initializers.block_influence import BlockInfluence
from polyprune_plugins.initializers.sleb import Sleb

CHOICES = {"layers": (Layer(),), "sublayers": (Attention(), Mlp()), "mlps": (Mlp(),)}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


@pytest.fixture
def deep(tiny) -> nn.Module:
    """A model of 5 layers, so that there is an order to find."""
    return tiny("llama", num_hidden_layers=5)


def calibration_for(model: nn.Module, ids: torch.Tensor, batch_size: int = 8, **how: Any) -> Calibration:
    return Calibration(model, describe(model), ids, generator(0, "metric"), batch_size, **how)


def loss_without(tiny: Any, model: Any, space: MaskSpace, ids: torch.Tensor, removed: set[int]) -> float:
    """Returns transformers' own loss of a copy in which what the removed units write is zero."""
    copy = tiny("llama", num_hidden_layers=model.config.num_hidden_layers)
    for unit in removed:
        for name, _ in space.groups[unit].spans:
            reader = copy.get_submodule(space.layout.axis[name].reader)
            reader.weight.data.zero_()
    with torch.no_grad():
        return float(copy(input_ids=ids, labels=ids).loss)


def greedy(tiny: Any, model: nn.Module, space: MaskSpace, ids: torch.Tensor) -> list[int]:
    """Returns the units in the order of their removal."""
    order: list[int] = []
    while len(order) < len(space):
        left = set(range(len(space))) - set(order)
        order.append(min(left, key=lambda unit: loss_without(tiny, model, space, ids, {*order, unit})))
    return order


@choices
def test_sleb_scores_are_the_order_of_a_greedy_removal(tiny, deep, space_of, ids, choice) -> None:
    space = space_of(deep, *choice)
    scores = Sleb().score(deep, space, calibration_for(deep, ids, 2))
    assert scores.argsort().tolist() == greedy(tiny, deep, space, ids)
    assert sorted(scores.tolist()) == list(range(len(space)))


def test_sleb_stops_where_it_is_told_and_ranks_the_others_by_the_last_losses(tiny, deep, space_of, ids) -> None:
    space = space_of(deep, Layer())
    calibration = calibration_for(deep, ids)
    order = Sleb(until=0.3).score(deep, space, calibration).argsort().tolist()
    first = greedy(tiny, deep, space, ids)[:2]
    left = set(range(5)) - set(first)
    alone = {unit: loss_without(tiny, deep, space, ids, {first[0], unit}) for unit in left}
    assert order == [*first, *sorted(left, key=alone.__getitem__)]
    assert calibration.forward_passes == 5 + 4


def test_sleb_counts_every_run_of_the_windows_it_was_given_and_tells_how_far_it_is(deep, space_of, ids) -> None:
    space, done = space_of(deep, Layer()), []
    calibration = calibration_for(deep, ids, 2, progress=lambda *made: done.append(made))
    found = Sleb(windows=3).score(deep, space, calibration)
    assert calibration.forward_tokens == (5 + 4 + 3 + 2) * ids[:3].numel()
    assert (calibration.forward_passes, calibration.backward_passes) == ((5 + 4 + 3 + 2) * 2, 0)
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(found, Sleb().score(deep, space, calibration_for(deep, ids[:3])))


@pytest.mark.parametrize("metric", [Sleb(), BlockInfluence()], ids=["sleb", "block-influence"])
@pytest.mark.parametrize("choice", [(Head(),), (Attention(), Channel())], ids=["heads", "attention and channels"])
def test_parts_of_sublayers_are_refused_with_what_to_use(llama, space_of, ids, metric, choice) -> None:
    with pytest.raises(ConfigError, match="--granularity layer, attention, mlp or attention\\+mlp"):
        metric.score(llama, space_of(llama, *choice), calibration_for(llama, ids))


def test_sleb_refuses_more_units_than_it_could_run(llama, make_space, ids) -> None:
    space = make_space(*[("mlp", layer, 4, 1.0, 4) for layer in range(513)])
    with pytest.raises(ConfigError, match="513 units"):
        Sleb().score(llama, space, calibration_for(llama, ids))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"until": 0.0}, "until=0"),
        ({"until": 1.5}, "until=1.5"),
        ({"windows": 0}, "windows=0"),
        ({"barriers": -1}, "barriers=-1"),
    ],
)
def test_sleb_refuses_options_that_mean_nothing(options, named) -> None:
    with pytest.raises(ConfigError, match=named):
        Sleb(**options)


def test_sleb_with_barriers_never_tries_the_layers_at_either_end(tiny, deep, space_of, ids) -> None:
    space = space_of(deep, Layer())
    calibration = calibration_for(deep, ids)
    found = Sleb(barriers=1).score(deep, space, calibration)
    order: list[int] = []
    while len(order) < 3:
        left = {1, 2, 3} - set(order)
        order.append(min(left, key=lambda unit: loss_without(tiny, deep, space, ids, {*order, unit})))
    assert found[[0, 4]].tolist() == [5, 5]
    assert found[order].tolist() == [0, 1, 2]
    assert calibration.forward_passes == 3 + 2
    sublayers = Sleb(barriers=2).score(deep, space_of(deep, Attention(), Mlp()), calibration_for(deep, ids))
    assert sorted(sublayers.tolist()) == [0, 1, *[10] * 8]
    assert sublayers[[2, 7]].max() == 1


def test_sleb_refuses_barriers_that_leave_nothing_to_remove(deep, space_of, ids) -> None:
    with pytest.raises(ConfigError, match="barriers=3 at either end leave none of 5 layers to remove; give 2 or less"):
        Sleb(barriers=3).score(deep, space_of(deep, Layer()), calibration_for(deep, ids))


def states(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Returns the hidden state before each sublayer and after the last, window by window and in double precision."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        layer.get_submodule(norm).register_forward_pre_hook(
            lambda _, x, key=(index, norm): seen.__setitem__(key, x[0].double())
        )
        for index, layer in enumerate(model.model.layers)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    handles.append(model.model.norm.register_forward_pre_hook(lambda _, x: seen.__setitem__("end", x[0].double())))
    windows = []
    for window in ids:
        with torch.no_grad():
            model(input_ids=window[None])
        windows.append(torch.stack(list(seen.values())))
        seen.clear()
    for handle in handles:
        handle.remove()
    return list(torch.cat(windows, dim=1))


@choices
@pytest.mark.parametrize("batch_size", [2, 8])
def test_block_influence_is_one_minus_the_cosine_across_what_the_unit_removes(
    model, space_of, ids, choice, batch_size
) -> None:
    space, seen = space_of(model, *choice), states(model, ids)
    assert len(seen) == 2 * 3 + 1
    expected = []
    for group in space.groups:
        first = 2 * group.layer + (group.kind == "mlp")
        last = first + (2 if group.kind == "layer" else 1)
        cosine = torch.nn.functional.cosine_similarity(seen[first], seen[last], dim=-1)
        expected.append(1 - cosine.mean())
    calibration = calibration_for(model, ids, batch_size)
    found = BlockInfluence().score(model, space, calibration)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert found.dtype == torch.float32
    assert calibration.forward_tokens == ids.numel()


@choices
def test_block_influence_as_released_takes_the_last_state_after_the_final_norm(tiny, space_of, ids, choice) -> None:
    model = tiny("llama")
    model.model.norm.weight.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    space, seen = space_of(model, *choice), states(model, ids)
    plain = BlockInfluence().score(model, space, calibration_for(model, ids, 2))
    normed = BlockInfluence(last="normed").score(model, space, calibration_for(model, ids, 2))
    for unit, group in enumerate(space.groups):
        if group.layer == 2 and group.kind != "attention":
            with torch.no_grad():
                after = model.model.norm(seen[-1].float()).double()
            before = seen[2 * 2 + (group.kind == "mlp")]
            expected = 1 - torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
            assert float(normed[unit]) == pytest.approx(float(expected), rel=1e-4)
            assert float(normed[unit]) != pytest.approx(float(plain[unit]), rel=1e-2)
        else:
            assert normed[unit] == plain[unit]


def test_block_influence_of_a_layer_that_adds_nothing_is_zero(tiny, space_of, ids) -> None:
    model = tiny("llama")
    for reader in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
        reader.weight.data.zero_()
    found = BlockInfluence().score(model, space_of(model, Layer()), calibration_for(model, ids))
    assert abs(float(found[1])) < 1e-6
    assert (found[[0, 2]] > 1e-3).all()
