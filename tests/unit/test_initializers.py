"""Metrics against naive computations, and what a metric may not do to the model."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from polyprune_core import Provider
from polyprune_core.budget import Budget
from polyprune_core.errors import PluginError
from polyprune_core.models.describe import describe
from polyprune_core.objective import Objective
from polyprune_core.plugins.functions import provider_of
from polyprune_core.plugins.registry import Registered, Registry, Source
from polyprune_core.policy import scale
from polyprune_core.scoring import Calibration
from polyprune_core.seeds import generator
from polyprune_core.space import MaskSpace
from polyprune_core.surgery import Compactor
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp
from polyprune_plugins.initializers.llm_pruner import LLMPruner
from polyprune_plugins.initializers.magnitude import magnitude
from polyprune_plugins.initializers.random import Random
from polyprune_plugins.initializers.thinet import ThiNet, outlived, passes_over
from polyprune_plugins.initializers.wanda import Wanda

Magnitude = provider_of(magnitude).factory
TAYLOR = ("element1", "vector", "element2", "mix")
METRICS: dict[str, Any] = {
    "wanda": Wanda(),
    "thinet": ThiNet(),
    "magnitude-1": Magnitude(power=1),
    "magnitude-2": Magnitude(),
    **{f"llm-pruner-{taylor}": LLMPruner(taylor) for taylor in TAYLOR},
}
metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
ROUNDING = {"rtol": 2e-5, "atol": 1e-7}  # float32 sums, and gradients, taken in another order


def calibration_for(model: nn.Module, ids: torch.Tensor, batch_size: int = 8) -> Calibration:
    return Calibration(model, describe(model), ids, generator(0, "metric"), batch_size)


def scores(metric: Any, model: nn.Module, space: MaskSpace, ids: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
    return metric.score(model, space, calibration_for(model, ids, batch_size))


def unit_weights(space: MaskSpace, unit: int) -> list[tuple[str, int, slice]]:
    """Returns (parameter, dimension, span) of everything a unit owns."""
    group = space.groups[int(space.group[unit])]
    index = unit - space.offsets[int(space.group[unit])]
    return [
        (cut.parameter, cut.dim, slice(index * per_unit * cut.width, (index + 1) * per_unit * cut.width))
        for axis, per_unit in group.spans
        for cut in space.layout.axis[axis].cuts
    ]


def summed_over_units(space: MaskSpace, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns (U,) float64: sums of per-weight values over what each unit owns, one unit at a time."""
    return torch.stack(
        [
            sum((values[name].double().transpose(0, dim)[span].sum() for name, dim, span in unit_weights(space, unit)))
            for unit in range(len(space))
        ]
    )


CHOICES = {"heads and channels": (Head(), Channel(block=3)), "sublayers": (Attention(), Mlp()), "layers": (Layer(),)}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


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


def outputs_of_units(model: nn.Module, space: MaskSpace, ids: torch.Tensor, group: int) -> torch.Tensor:
    """Returns (units, tokens, out) float64: what each unit of a group adds to the output of its sublayer."""
    ((axis, per_unit),) = space.groups[group].spans
    cut = space.layout.axis[axis].cuts[-1]
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
    assert outlived(outputs @ outputs.T).tolist() == [0, 0.5, 0.25, 0.75]


def test_thinet_scores_alike_in_as_many_passes_as_its_memory_takes(llama, space_of, ids, monkeypatch) -> None:
    space = space_of(llama, Head(), Channel())
    together = calibration_for(llama, ids)
    expected = ThiNet().score(llama, space, together)
    monkeypatch.setattr("polyprune_plugins.initializers.thinet.AT_A_TIME", 4 * 70**2)
    apart = calibration_for(llama, ids)
    assert torch.equal(ThiNet().score(llama, space, apart), expected)
    assert (together.forward_tokens, apart.forward_tokens) == (ids.numel(), len(list(passes_over(space))) * ids.numel())
    assert [name for names in passes_over(space) for name in names] == list(space.axes)


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


def taylor_by_hand(model: nn.Module, space: MaskSpace, ids: torch.Tensor, taylor: str) -> torch.Tensor:
    """Returns LLM-Pruner's scores from transformers' own loss and back-propagation, window by window."""
    model = copy.deepcopy(model).requires_grad_(True)
    gradient = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    square = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for window in ids:
        model.zero_grad()
        model(input_ids=window[None], labels=window[None]).loss.backward()
        for name, p in model.named_parameters():
            gradient[name] += p.grad / len(ids)
            square[name] += p.grad.square() / len(ids)
    values = {}
    for name, p in model.named_parameters():
        w, g, f = p.detach(), gradient[name], square[name]
        values[name] = {
            "element1": (w * g).abs(),
            "vector": w * g,
            "element2": w.square() * f,
            "mix": (w * g - w.square() * f / 2).abs(),
        }[taylor]
    return summed_over_units(space, values).abs()


@choices
@pytest.mark.parametrize("taylor", TAYLOR)
def test_llm_pruner_is_the_taylor_estimate_from_back_propagation(model, space_of, ids, choice, taylor) -> None:
    space = space_of(model, *choice)
    found = scores(LLMPruner(taylor), model, space, ids).double()
    expected = taylor_by_hand(model, space, ids, taylor)
    # `vector` cancels most of what it sums; its error is relative to the sum of sizes, not to what is left.
    atol = 2e-5 * float(taylor_by_hand(model, space, ids, "element1").max()) if taylor == "vector" else 1e-7
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


def test_the_first_order_estimate_predicts_what_removing_a_channel_costs(llama, space_of, ids) -> None:
    """The signed Taylor sum is the derivative of the loss along the unit's weights: checked by a finite difference."""
    space = space_of(llama, Channel())
    found = scores(LLMPruner("vector"), llama, space, ids)
    model = copy.deepcopy(llama).double()

    def loss(factor: float, unit: int) -> float:
        scaled = copy.deepcopy(model)
        for name, dim, span in unit_weights(space, unit):
            scaled.get_parameter(name).data.transpose(0, dim)[span] *= factor
        with torch.no_grad():  # transformers' own loss is computed in float32: too coarse for a difference
            log_p = torch.log_softmax(scaled(input_ids=ids).logits[:, :-1], dim=-1)
        return -float(log_p.gather(2, ids[:, 1:, None]).mean())

    for unit in found.topk(3).indices.tolist():
        slope = (loss(1.01, unit) - loss(0.99, unit)) / 0.02
        # Norms are computed in float32 whatever the model: a wide step, and its error.
        assert float(found[unit]) == pytest.approx(abs(slope), rel=5e-3)


def test_random_scores_come_from_the_metrics_own_generator_alone(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    before = torch.get_rng_state()
    first, again = (scores(Random(), llama, space, ids) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert ((first >= 0) & (first < 1)).all()
    other = Random().score(llama, space, Calibration(llama, space.layout, ids, generator(1, "metric")))
    assert not torch.equal(first, other)


@metrics
@choices
def test_scores_are_finite_float32_one_a_unit_and_on_the_cpu(model, space_of, ids, metric, choice) -> None:
    space = space_of(model, *choice)
    found = scores(metric, model, space, ids)
    assert found.shape == (len(space),)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert not found.is_inference()


@metrics
def test_the_same_text_gives_the_same_scores(llama, space_of, ids, metric) -> None:
    space = space_of(llama, Head(), Channel())
    assert torch.equal(scores(metric, llama, space, ids), scores(metric, llama, space, ids))


def permuted(model: nn.Module, layer: int, order: torch.Tensor) -> nn.Module:
    """Returns a copy whose MLP channels of one layer stand in another order: the same function."""
    changed = copy.deepcopy(model)
    mlp = changed.model.layers[layer].mlp
    for rows in (mlp.gate_proj.weight, mlp.up_proj.weight):
        rows.data = rows.data[order]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    return changed


@metrics
def test_permuting_the_channels_of_an_mlp_permutes_their_scores(model, space_of, ids, metric) -> None:
    space = space_of(model, Head(), Channel())
    order = torch.randperm(70, generator=torch.Generator().manual_seed(4))
    where = space.slices()[4]  # three groups of heads come first: this is the MLP of layer 1
    assert (space.groups[4].kind, space.groups[4].layer) == ("channel", 1)
    expected = scores(metric, model, space, ids)
    expected[where] = expected[where][order]
    found = scores(metric, permuted(model, 1, order), space, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@metrics
@pytest.mark.parametrize("dead", [0, 33, 69])
def test_a_channel_of_zero_weights_ranks_last(model, space_of, ids, metric, dead) -> None:
    changed = copy.deepcopy(model)
    mlp = changed.model.layers[2].mlp
    for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.t()):
        weight.data[dead] = 0
    space = space_of(changed, Channel())
    layer = scores(metric, changed, space, ids)[space.slices()[2]]
    assert layer[dead] == 0
    assert (layer[torch.arange(70) != dead] > 0).all()


@metrics
def test_a_head_that_writes_nothing_and_reads_nothing_ranks_last(model, space_of, ids, metric) -> None:
    changed = copy.deepcopy(model)
    space = space_of(changed, Head())
    for name, dim, span in unit_weights(space, 4):
        changed.get_parameter(name).data.transpose(0, dim)[span] = 0
    layer = scores(metric, changed, space, ids)[space.slices()[1]]
    assert layer[1] == 0
    assert (layer[[0, 2]] > 0).all()


@metrics
def test_the_batch_size_does_not_matter(model, space_of, ids, metric) -> None:
    space = space_of(model, Head(), Channel())
    expected = scores(metric, model, space, ids)
    for batch_size in (1, 2, 5):
        found = scores(metric, model, space, ids, batch_size)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@metrics
def test_the_order_of_the_windows_does_not_matter(llama, space_of, ids, metric) -> None:
    space = space_of(llama, Head(), Channel())
    expected = scores(metric, llama, space, ids)
    found = scores(metric, llama, space, ids.flip(0), 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def world(model: nn.Module) -> dict[str, Any]:
    """Returns all that a metric must leave alone, but for the weights."""
    return {
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()],
        "forwards": [vars(m).get("forward") for m in model.modules()],
        "contiguous": [p.is_contiguous() for p in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
    }


@metrics
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
def test_a_metric_leaves_the_model_and_the_generator_as_they_were(tiny, space_of, ids, metric, trainable) -> None:
    model = tiny("qwen2").requires_grad_(trainable)
    model.model.layers[1].train()
    space = space_of(model, Head(), Channel())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, generator_state, windows = world(model), torch.get_rng_state(), ids.clone()
    scores(metric, model, space, ids)
    assert world(model) == before
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert torch.equal(ids, windows)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


@metrics
def test_a_failure_inside_the_model_leaves_it_as_it_was(tiny, space_of, ids, metric) -> None:
    model = tiny("llama")
    space = space_of(model, Channel())
    before = world(model)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("stopped by the test")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(stop)
    if type(metric) is type(Magnitude()):
        scores(metric, model, space, ids)
    else:
        with pytest.raises(KeyboardInterrupt, match="stopped by the test"):
            scores(metric, model, space, ids)
    handle.remove()
    assert world(model) == before


# The calibration behind the metrics.


def test_statistics_are_computed_once_and_their_cost_is_counted(llama, ids) -> None:
    done = []
    calibration = Calibration(
        llama, describe(llama), ids, generator(0, "metric"), 2, progress=lambda n, total: done.append((n, total))
    )
    first = calibration.input_statistics()
    again = calibration.input_statistics()
    assert all(again[name] is moments for name, moments in first.items())
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (3, 60, 0)
    assert done == [(1, 3), (2, 3), (3, 3)]
    calibration.gradients()
    calibration.gradients()
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (6, 120, 3)
    calibration.gradients(squares=True)
    assert (calibration.forward_passes, calibration.forward_tokens, calibration.backward_passes) == (11, 180, 8)


def test_input_statistics_are_the_moments_over_all_tokens(llama, ids) -> None:
    seen = []
    reader = llama.model.layers[1].mlp.down_proj
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].double().flatten(0, 1))):
        llama(input_ids=ids)
    found = calibration_for(llama, ids, 2).input_statistics()["layers.1.mlp"]
    torch.testing.assert_close(found.mean.double(), seen[0].mean(dim=0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean_square.double(), seen[0].square().mean(dim=0), rtol=1e-5, atol=1e-7)


def test_second_moments_are_the_mean_products_of_a_readers_inputs(llama, ids) -> None:
    seen = []
    reader = llama.model.layers[1].mlp.down_proj
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].double().flatten(0, 1))):
        llama(input_ids=ids)
    calibration = calibration_for(llama, ids, 2)
    found = calibration.second_moments(["layers.1.mlp"])["layers.1.mlp"]
    torch.testing.assert_close(found.double(), seen[0].T @ seen[0] / len(seen[0]), rtol=1e-5, atol=1e-7)
    assert (calibration.forward_passes, calibration.forward_tokens) == (3, 60)


def test_the_gradient_is_that_of_the_mean_loss_however_uneven_the_batches(llama, ids) -> None:
    model = copy.deepcopy(llama).requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    mean, square = calibration_for(llama, ids, 3).gradients()
    assert square == {}
    for name, gradient in mean.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_losses_under_masks_are_the_masked_models_and_are_counted(llama, ids, shared) -> None:
    layout = describe(llama)
    space = MaskSpace(layout, [*Head().groups(layout), *Channel().groups(layout)])
    masks = torch.rand((3, len(space)), generator=generator(0, "masks")) < 0.7
    compactor = Compactor(llama, layout)
    calibration = Calibration(llama, layout, ids, generator(0, "metric"), compactor=compactor if shared else None)
    with compactor if shared else nullcontext():
        found = calibration.losses(space, masks, ids[:2])
    with compactor:
        expected = Objective(compactor, space).losses(masks, ids[:2])
    assert torch.equal(found, expected)
    assert found.unique().numel() == 3
    assert (calibration.forward_passes, calibration.forward_tokens) == (3, 3 * ids[:2].numel())
    found[0] = 0  # an ordinary tensor, which a metric may write into


# A metric that builds on another, or decides under a budget.


@pytest.mark.parametrize("how", ["raw", "zscore", "per-parameter"])
@pytest.mark.parametrize("spec", ["wanda", "llm-pruner:taylor=vector"])
def test_another_metric_scores_as_it_does_alone_and_is_paid_for(llama, space_of, ids, spec, how) -> None:
    space = space_of(llama, Head(), Channel())
    metric = LLMPruner("vector") if ":" in spec else Wanda()
    alone, calibration = calibration_for(llama, ids, 2), calibration_for(llama, ids, 2)
    expected = scale(metric.score(llama, space, alone), space, how)
    assert torch.equal(calibration.score(spec, space, how), expected)
    costs = ("forward_passes", "forward_tokens", "backward_passes")
    assert [getattr(calibration, cost) for cost in costs] == [getattr(alone, cost) for cost in costs]


def test_another_metric_is_looked_for_where_the_run_found_this_one(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    known = [Registered("initializer", Provider("own", "made for a test", Wanda), Source("test", "1"))]
    calibration = Calibration(llama, space.layout, ids, generator(0, "metric"), registry=Registry(known, ()))
    assert torch.equal(calibration.score("own", space), scores(Wanda(), llama, space, ids))
    with pytest.raises(PluginError, match="no initializer named 'wanda'"):
        calibration.score("wanda", space)


def test_scores_made_for_a_budget_are_not_rescaled_for_another_metric(llama, space_of, ids) -> None:
    space = space_of(llama, Channel())
    for needs, expected in ((frozenset(), "zscore"), (frozenset({"budget"}), "raw")):
        known = [Registered("initializer", Provider("own", "made for a test", Magnitude, needs), Source("test", "1"))]
        calibration = Calibration(llama, space.layout, ids, generator(0, "metric"), registry=Registry(known, ()))
        plain = scores(Magnitude(), llama, space, ids)
        assert torch.equal(calibration.score("own", space, "zscore"), scale(plain, space, expected))


def test_a_budget_that_was_not_asked_for_is_not_given(llama, ids) -> None:
    asked = Budget(0.3, "global", 2)
    calibration = Calibration(llama, describe(llama), ids, generator(0, "metric"), budget=asked)
    assert calibration.budget is asked
    with pytest.raises(PluginError, match='put "budget" into the needs of the Provider'):
        _ = calibration_for(llama, ids).budget
