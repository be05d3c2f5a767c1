"""Repairs in closed form where channels of experts are cut: each expert is fitted on the tokens it is chosen for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from polyprune_core.errors import ModelError
from polyprune_core.evaluation import moments
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.moments import MomentStore
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.writable import write_model
from polyprune_core.runs.repair_notes import of_experts
from polyprune_core.testing.tiny import logits_of, tiny_base, tiny_calibration, tiny_pruned
from polyprune_core.utils.rng import generator
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.expert import Expert
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.repairs.bias import Bias
from polyprune_plugins.repairs.least_squares import LeastSquares
from polyprune_plugins.repairs.rotation import Rotation
from polyprune_plugins.repairs.scale import Scale
from polyprune_plugins.repairs.sequential import Sequential

LAYER, DOWN = 2, "model.layers.2.mlp.experts.down_proj"
LEFT = torch.tensor([True, False, True]).repeat_interleave(8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("mixtral"), "mixtral")


def some_pruned(base):
    """Removes the second of three blocks of eight channels from the experts of the last layer."""
    layout = describe(base.model)
    space = MaskSpace(layout, Channel().groups(layout), "channel")
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[space.slices()[LAYER].start + 1] = False
    return tiny_pruned(base, space, keep)


def sent_to(model, expert):
    """Returns the weighted inner features (n, 24) of the tokens that a router sends to one expert, in float64."""
    seen = []
    experts = model.model.layers[LAYER].mlp.experts
    with experts.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs)):
        logits_of(model)
    hidden, index, weight = seen[0]
    tokens, place = (index == expert).nonzero(as_tuple=True)
    gate, up = (hidden[tokens] @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up * weight[tokens, place, None]).double()


def test_the_moments_of_one_expert_are_means_over_the_tokens_it_is_chosen_for(base) -> None:
    calibration = tiny_calibration(base.model)
    for expert in range(6):
        rows = sent_to(base.model, expert)
        found = calibration.moments(f"layers.2.expert-channel[{expert}]")
        torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.second.double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-6)
    assert calibration.forward_tokens == calibration.windows.numel()


def test_least_squares_fits_each_expert_on_its_own_tokens(base) -> None:
    pruned = some_pruned(base)
    updates = LeastSquares(ridge=0.1).repair(pruned, tiny_calibration(base.model))
    assert {name: tuple(value.shape) for name, value in updates.items()} == {DOWN: (6, 36, 16)}
    for expert in range(6):
        rows, old = sent_to(base.model, expert), base.model.get_parameter(DOWN)[expert].double()
        ridge = 0.1 * rows.square().mean(0).median() * len(rows)
        left = torch.cat([rows[:, LEFT], ridge.sqrt() * torch.eye(16).double()])
        wanted = torch.cat([rows @ old.T, ridge.sqrt() * old[:, LEFT].T])
        expected = torch.linalg.lstsq(left, wanted).solution.T.float()
        torch.testing.assert_close(updates[DOWN][expert], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("repair", [LeastSquares(), Scale(), Scale(of="column")])
def test_what_each_expert_gives_comes_nearer_to_what_it_gave(base, repair) -> None:
    pruned, dense = some_pruned(base), base.model.get_parameter(DOWN).double()
    found = repair.repair(pruned, tiny_calibration(base.model))[DOWN].double()
    for expert, (old, new) in enumerate(zip(dense, found, strict=True)):
        rows = sent_to(base.model, expert)
        before, after = (float((rows @ old.T - rows[:, LEFT] @ w.T).norm()) for w in (old[:, LEFT], new))
        assert after < before


def test_the_smaller_model_is_built_with_what_a_repair_made_of_its_experts(base) -> None:
    pruned = some_pruned(base)
    repaired = dataclasses.replace(pruned, updates=LeastSquares().repair(pruned, tiny_calibration(base.model)))
    before, after = ((logits_of(each.build()) - logits_of(base.model)).norm() for each in (pruned, repaired))
    assert after < before


def test_rotation_turns_the_output_of_each_expert_and_keeps_its_length(base) -> None:
    pruned = some_pruned(base)
    (name, found), *others = Rotation().repair(pruned, tiny_calibration(base.model)).items()
    old = base.model.get_parameter(DOWN)[..., LEFT]
    torch.testing.assert_close(found.mT @ found, old.mT @ old, rtol=1e-3, atol=1e-4)
    assert (name, others) == (DOWN, [])
    assert not torch.allclose(found, old)


def test_an_expert_that_no_token_meets_keeps_its_weights(base) -> None:
    pruned = some_pruned(base)
    calibration = tiny_calibration(base.model, windows=tiny_calibration(base.model).windows[:1, :2])
    found = LeastSquares(ridge=0.1).repair(pruned, calibration)[DOWN]
    idle = [expert for expert in range(6) if not len(_chosen(base.model, calibration.windows, expert))]
    assert idle
    for expert in idle:
        assert torch.equal(found[expert], base.model.get_parameter(DOWN)[expert][:, LEFT])


def _chosen(model, ids, expert):
    seen = []
    with model.model.layers[LAYER].mlp.experts.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs)):
        model(input_ids=ids)
    return (seen[0][1] == expert).nonzero()


def test_where_whole_experts_are_gone_there_is_nothing_to_refit_and_a_bias_has_no_place_in_one(base) -> None:
    layout = describe(base.model)
    space = MaskSpace(layout, Expert().groups(layout), "expert")
    keep = torch.ones(18, dtype=torch.bool)
    keep[[13, 15]] = False
    assert LeastSquares().repair(tiny_pruned(base, space, keep), tiny_calibration(base.model)) == {}
    assert Bias().repair(some_pruned(base), tiny_calibration(base.model)) == {}


@pytest.mark.parametrize("at_a_time", [1.0, 3 * 4.0 * 24**2])
def test_experts_are_measured_alike_layer_by_layer_and_where_their_moments_lie_in_files(
    base, monkeypatch, at_a_time
) -> None:
    layout, text = describe(base.model), tiny_calibration(base.model).windows
    names = [f"layers.{layer}.expert[{expert}]" for layer in range(3) for expert in range(6)]
    whole = tiny_calibration(base.model)
    expected = {name: whole.moments(name) for name in names}
    monkeypatch.setattr(moments, "AT_A_TIME", at_a_time)
    store = MomentStore(in_memory=4.0 * 24**2)
    calibration = Calibration(base.model, layout, text, generator(0, "metric"), store=store)
    for name, found in expected.items():
        torch.testing.assert_close(calibration.moments(name).second, found.second)
        torch.testing.assert_close(calibration.moments(name).mean, found.mean)


def test_experts_that_are_too_large_as_one_map_are_refitted_one_by_one_or_refused_with_the_way_out(
    base, monkeypatch
) -> None:
    monkeypatch.setattr("polyprune_core.evaluation.text_passes.AT_MOST", 4.0 * 36**2)
    monkeypatch.setattr(moments, "AT_MOST", 4.0 * 36**2)
    pruned = some_pruned(base)
    assert DOWN in LeastSquares().repair(pruned, tiny_calibration(base.model))
    with pytest.raises(ModelError, match=r"layers.2.mlp.experts are refitted together.*use least-squares"):
        Sequential().repair(pruned, tiny_calibration(base.model))
    heads = MaskSpace(pruned.layout, Head().groups(pruned.layout), "head")
    keep = torch.arange(9) % 3 > 0
    updates = Sequential().repair(tiny_pruned(base, heads, keep), tiny_calibration(base.model))
    assert {name.rpartition(".")[0] for name in updates} == {f"model.layers.{i}.self_attn.o_proj" for i in range(3)}


@pytest.mark.parametrize(
    ("granularity", "repair", "told"),
    [
        (
            Expert(),
            "least-squares",
            "some were removed, and of what the others take in nothing was cut. The repair",
        ),
        (Channel(), "bias", "of which channels were removed; least-squares and sequential fit what is left"),
        (Channel(), "none", None),
    ],
)
def test_experts_that_a_repair_leaves_as_they_are_are_told_of(base, granularity, repair, told) -> None:
    layout = describe(base.model)
    space = MaskSpace(layout, granularity.groups(layout), "experts")
    pruned = tiny_pruned(base, space, torch.arange(len(space)) % 2 == 0)
    found = [message for _, message in of_experts(pruned, repair, {})]
    assert len(found) == (told is not None)
    assert told is None or (told in found[0] and f"repair {repair} leaves the experts of 3 layers" in found[0])
    assert not list(of_experts(pruned, repair, {axis.stack.parameter: 0 for axis in layout.axes if axis.stack}))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_are_cut_and_then_the_channels_of_those_that_stay(family, tmp_path) -> None:
    base = tiny_base(tmp_path / "dense", family)
    layout = describe(base.model)
    experts = MaskSpace(layout, [*Expert().groups(layout), *Head().groups(layout)], "expert+head")
    keep = torch.ones(len(experts), dtype=torch.bool)
    keep[[0, 1, 7]] = False
    keep[-2] = False  # a head, so that a repair adds a bias
    first = tiny_pruned(base, experts, keep)
    first = dataclasses.replace(first, updates=Sequential().repair(first, tiny_calibration(base.model)))
    write_model(first, new(tmp_path / "first"), torch.float32, "5GB", {})

    again = load_model(str(tmp_path / "first"), dtype="float32", device="cpu")
    layout = describe(again.model)
    channels = MaskSpace(layout, Channel().groups(layout), "channel")
    second = tiny_pruned(again, channels, torch.arange(len(channels)) % 3 != 1)
    second = dataclasses.replace(second, updates=LeastSquares().repair(second, tiny_calibration(again.model)))
    write_model(second, new(tmp_path / "second"), torch.float32, "5GB", {})

    read = load_model(str(tmp_path / "second"), dtype="float32", device="cpu").model
    torch.testing.assert_close(logits_of(read), logits_of(second.build()), rtol=0, atol=1e-5)
    assert second.parameters == read.num_parameters() < first.parameters
    assert read.get_parameter("model.layers.0.mlp.experts.down_proj").shape == (4, 36, 16)
    assert second.active_parameters is not None
    assert second.active_parameters < first.active_parameters


def new(folder):
    folder.mkdir()
    return folder
