"""Metrics against naive computations."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from all_metrics import TAYLOR, Magnitude, calibration_for, choices, scores, unit_weights
from torch import nn

from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.moments import passes_over
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.utils.rng import generator
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.mlp import Mlp
from polyprune_plugins.initializers.llm_pruner import LLMPruner
from polyprune_plugins.initializers.random import Random
from polyprune_plugins.initializers.thinet import ThiNet, removal_order
from polyprune_plugins.initializers.wanda import Wanda

ROUNDING = {"rtol": 2e-5, "atol": 1e-7}  # float32 sums, and gradients, taken in another order


def summed_over_units(space: MaskSpace, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns (U,) float64: sums of per-weight values over what each unit owns, one unit at a time."""
    return torch.stack(
        [
            sum((values[name].double().transpose(0, dim)[span].sum() for name, dim, span in unit_weights(space, unit)))
            for unit in range(len(space))
        ]
    )


@choices
def test_wanda_is_the_mean_weight_of_a_reader_column_times_the_norm_of_its_input(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    inputs: dict[str, list[torch.Tensor]] = {axis.reader: [] for axis in space.layout.axes}
    handles = [
        model.get_submodule(reader).register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].double()))
        for reader, seen in inputs.items()
    ]
    with torch.no_grad():
        for window in ids:
            model(input_ids=window[None])
    for handle in handles:
        handle.remove()
    expected = torch.zeros(len(space), dtype=torch.float64)
    for unit in range(len(space)):
        for name, dim, span in unit_weights(space, unit):
            if dim == 1:
                x = torch.cat([batch.flatten(0, 1) for batch in inputs[name.removesuffix(".weight")]])
                weight = model.get_parameter(name).double()
                norm = x.square().mean(dim=0).sqrt()
                expected[unit] += (weight.abs().mean(dim=0) * norm)[span].sum()
    torch.testing.assert_close(scores(Wanda(), model, space, ids).double(), expected, **ROUNDING)


def test_wanda_one_layer_after_the_other_measures_what_the_layers_before_have_left(model, space_of, ids) -> None:
    """Against copies of the model in which what was removed from earlier layers is zero."""
    space = space_of(model, Head(), Channel(block=3))
    cut, expected = copy.deepcopy(model), torch.zeros(len(space))
    for layer in range(space.layout.num_layers):
        whole = scores(Wanda(), cut, space, ids)
        for where, group in zip(space.slices(), space.groups, strict=True):
            if group.layer != layer:
                continue
            expected[where] = whole[where]
            worst = whole[where].argsort(stable=True)[: int(0.4 * group.count)].tolist()
            assert worst
            for name, dim, span in (part for unit in worst for part in unit_weights(space, where.start + unit)):
                cut.get_parameter(name).data.transpose(0, dim)[span] = 0
    calibration = calibration_for(model, ids)
    found = Wanda(sequential=0.4).score(model, space, calibration)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert calibration.forward_tokens == space.layout.num_layers * ids.numel()
    assert not torch.allclose(found, scores(Wanda(), model, space, ids), rtol=1e-3)
    torch.testing.assert_close(Wanda().score(model, space, calibration), scores(Wanda(), model, space, ids))


def test_wanda_refuses_shares_that_mean_nothing(llama, space_of, ids) -> None:
    with pytest.raises(ConfigError, match="sequential=1 is no share"):
        Wanda(sequential=1.0)
    with pytest.raises(ConfigError, match="none that are parts of one"):
        scores(Wanda(sequential=0.5), llama, space_of(llama, Mlp()), ids)


def outputs_of_units(model: nn.Module, space: MaskSpace, ids: torch.Tensor, group: int) -> torch.Tensor:
    """Returns (units, tokens, out) float64: what each unit of a group adds to the output of its sublayer."""
    ((axis, per_unit),) = space.groups[group].spans
    cut = space.layout.axis[axis].reader_cut
    reader, seen = model.get_submodule(cut.parameter.removesuffix(".weight")), []
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].double().flatten(0, 1))):
        model(input_ids=ids)
    columns = reader.weight.detach().double().T[:, None] * seen[0].T[:, :, None]
    return torch.stack([part.sum(dim=0) for part in columns.split(per_unit * cut.width)])


@pytest.mark.parametrize("group", [1, 4], ids=["heads", "channels"])
def test_thinet_removes_greedily_what_changes_the_output_least(model, space_of, ids, group) -> None:
    space = space_of(model, Head(), Channel(block=3))
    outputs = outputs_of_units(model, space, ids, group)
    gone, left = torch.zeros(outputs.shape[1:], dtype=torch.float64), list(range(len(outputs)))
    expected = torch.empty(len(outputs))
    for place in range(len(outputs)):
        unit = min(left, key=lambda unit: float((gone + outputs[unit]).square().sum()))
        left.remove(unit)
        gone = gone + outputs[unit]
        expected[unit] = place / len(outputs)
    torch.testing.assert_close(scores(ThiNet(), model, space, ids)[space.slices()[group]], expected)


def test_thinet_removes_a_larger_unit_before_a_smaller_one_where_it_cancels_what_is_gone() -> None:
    outputs = torch.tensor([[2.0, 0.0], [0.0, 2.1], [-2.2, 0.0], [3.0, 3.0]])
    assert outputs.square().sum(dim=1).argsort().tolist() == [0, 1, 2, 3]
    assert removal_order(outputs @ outputs.T).tolist() == [0, 0.5, 0.25, 0.75]


def test_thinet_scores_alike_in_one_pass_where_its_memory_takes_one_layer_at_a_time(
    llama, space_of, ids, monkeypatch
) -> None:
    space = space_of(llama, Head(), Channel())
    together = calibration_for(llama, ids)
    expected = ThiNet().score(llama, space, together)
    monkeypatch.setattr("polyprune_core.evaluation.moments.AT_A_TIME", 4 * 70**2)
    apart = calibration_for(llama, ids)
    assert torch.equal(ThiNet().score(llama, space, apart), expected)
    assert len(list(passes_over(llama, space.layout, "model.layers.0.mlp.down_proj"))) > 1
    assert together.forward_tokens == apart.forward_tokens == ids.numel()


def test_thinet_takes_units_that_are_alone_in_their_layer_by_the_size_of_their_output(llama, space_of, ids) -> None:
    space = space_of(llama, Mlp())
    sizes = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _, x, y: sizes.append(y.double().square().sum() / ids.numel()))
        for layer in llama.model.layers
    ]
    with torch.no_grad():
        llama(input_ids=ids)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(scores(ThiNet(), llama, space, ids).double(), torch.stack(sizes), rtol=1e-5, atol=0)


@choices
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_magnitude_is_the_sum_of_the_absolute_weights_to_a_power(model, space_of, ids, choice, power) -> None:
    space = space_of(model, *choice)
    values = {name: p.detach().double().abs() ** power for name, p in model.named_parameters()}
    found = scores(Magnitude(power=power), model, space, ids).double()
    torch.testing.assert_close(found, summed_over_units(space, values), **ROUNDING)


@functools.cache
def gradients(model: nn.Module, ids: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns means of gradients and of their squares, from transformers' own loss, window by window."""
    model = copy.deepcopy(model).requires_grad_(True)
    gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for window in ids:
        model.zero_grad()
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for name, p in model.named_parameters():
            gradient[name] += p.grad / len(ids)
            square[name] += p.grad.square() / len(ids)
    return gradient, square


def taylor_values(model: nn.Module, ids: torch.Tensor, taylor: str) -> dict[str, torch.Tensor]:
    """Returns an estimate for every weight, by back-propagation."""
    gradient, square = gradients(model, ids)
    values = {}
    for name, p in model.named_parameters():
        w, g, f = p.detach(), gradient[name], square[name]
        values[name] = {
            "element1": (w * g).abs(),
            "vector": w * g,
            "element2": w.square() * f,
            "mix": (w * g - w.square() * f / 2).abs(),
        }[taylor]
    return values


def taylor_by_hand(model: nn.Module, space: MaskSpace, ids: torch.Tensor, taylor: str) -> torch.Tensor:
    """Returns LLM-Pruner's scores: for `vector`, the size of the sum over each row or column that a unit owns."""
    values = taylor_values(model, ids, taylor)
    if taylor != "vector":
        return summed_over_units(space, values)
    return torch.stack(
        [
            sum(
                part.sum().abs()
                for name, dim, span in unit_weights(space, unit)
                for part in values[name].double().transpose(0, dim)[span]
            )
            for unit in range(len(space))
        ]
    )


@choices
@pytest.mark.parametrize("taylor", TAYLOR)
def test_llm_pruner_is_the_taylor_estimate_from_back_propagation(model, space_of, ids, choice, taylor) -> None:
    space = space_of(model, *choice)
    found = scores(LLMPruner(taylor), model, space, ids).double()
    expected = taylor_by_hand(model, space, ids, taylor)
    # `vector` cancels most of what it sums; its error is relative to the sum of sizes, not to what is left.
    atol = 2e-5 * float(taylor_by_hand(model, space, ids, "element1").max()) if taylor == "vector" else 1e-7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def test_the_first_order_estimate_predicts_what_removing_each_row_of_a_channel_costs(llama, space_of, ids) -> None:
    """A row's signed Taylor sum is the derivative of the loss along its weights: checked by a finite difference."""
    space = space_of(llama, Channel())
    found = scores(LLMPruner("vector"), llama, space, ids)
    model = copy.deepcopy(llama).double()

    def loss(factor: float, name: str, dim: int, span: slice) -> float:
        scaled = copy.deepcopy(model)
        scaled.get_parameter(name).data.transpose(0, dim)[span] *= factor
        with torch.no_grad():  # transformers' own loss is computed in float32: too coarse for a difference
            log_p = torch.log_softmax(scaled(input_ids=ids).logits[:, :-1], dim=-1)
        return -float(log_p.gather(2, ids[:, 1:, None]).mean())

    for unit in found.topk(3).indices.tolist():
        slopes = [(loss(1.01, *part) - loss(0.99, *part)) / 0.02 for part in unit_weights(space, unit)]
        assert len(slopes) == 3
        # Norms are computed in float32 whatever the model: a wide step, and its error.
        assert float(found[unit]) == pytest.approx(sum(map(abs, slopes)), rel=5e-3)


@pytest.mark.parametrize("taylor", TAYLOR)
def test_llm_pruner_as_released_counts_query_head_j_for_kv_head_j_modulo_their_number(
    model, space_of, ids, taylor
) -> None:
    space = space_of(model, Head(), Channel())
    found = scores(LLMPruner(taylor, queries="modulo"), model, space, ids)
    own = scores(LLMPruner(taylor), model, space, ids)
    values = taylor_values(model, ids, taylor)
    kv, width = model.config.num_key_value_heads, model.model.layers[0].self_attn.head_dim
    assert model.config.num_attention_heads > kv > 1
    for where, group in zip(space.slices(), space.groups, strict=True):
        if group.kind != "head":
            assert torch.equal(found[where], own[where])
            continue
        expected = torch.zeros(kv, dtype=torch.float64)
        for cut in space.layout.axis[group.spans[0][0]].cuts:
            for place, row in enumerate(values[cut.parameter].double().transpose(0, cut.dim)):
                expected[place // width % kv] += row.sum().abs()
        torch.testing.assert_close(found[where].double(), expected, rtol=1e-4, atol=2e-5 * float(own.max()))
        assert not torch.allclose(found[where], own[where], rtol=1e-3)


def test_random_scores_come_from_the_metrics_own_generator_alone(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    before = torch.get_rng_state()
    first, again = (scores(Random(), llama, space, ids) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert ((first >= 0) & (first < 1)).all()
    other = Random().score(llama, space, Calibration(llama, space.layout, ids, generator(1, "metric")))
    assert not torch.equal(first, other)
