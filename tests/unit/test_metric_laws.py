"""What holds of every metric: how its scores follow the model and the text, and that it changes neither."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from all_metrics import Magnitude, choices, metrics, scores, unit_weights
from torch import nn

from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head


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
