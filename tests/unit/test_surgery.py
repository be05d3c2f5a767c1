"""Gated, zeroed and compact are one model; the real one is untouched by all three."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from polyprune_core.models.describe import describe
from polyprune_core.pruning import sublayer
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor, compact_state_dict
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
}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False).logits


def assert_rounding_apart(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Float32 sums in another order: a few units in the last place of logits of size 1 to 5, over three layers."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def random_keep(space: MaskSpace, seed: int, share: float = 0.5) -> torch.Tensor:
    return torch.rand(len(space), generator=torch.Generator().manual_seed(seed)) < share


def zeroed(model: nn.Module, space: MaskSpace, keep: torch.Tensor, *, reader_only: bool) -> nn.Module:
    """Returns a copy whose removed entries have zero weights: in all the parameters they own, or in the reader's."""
    changed = copy.deepcopy(model)
    for name, entries in space.axis_keep(keep).items():
        axis = space.layout.axis[name]
        for cut in (axis.reader_cut,) if reader_only else axis.cuts:
            gate = entries.repeat_interleave(cut.width).float()
            weight = changed.get_parameter(cut.parameter)
            shape = [1] * weight.dim()
            shape[cut.dim] = -1
            weight.data.mul_(gate.view(shape))
    return changed


def compact(model: nn.Module, space: MaskSpace, keep: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    with Compactor(model, space.layout) as compactor, compactor.applied(space.axis_keep(keep)) as smaller:
        return logits(smaller, ids)


def gate(model: nn.Module, space: MaskSpace, keep: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    with gated(model, space.layout, space.axis_keep(keep)):
        return logits(model, ids)


def test_the_tiny_models_use_all_their_sublayers(model, space_of, ids) -> None:
    """What makes the comparisons below mean something: removing any sublayer moves the logits far beyond rounding."""
    space = space_of(model, Attention(), Mlp())
    whole = logits(model, ids)
    for unit in range(len(space)):
        keep = torch.arange(len(space)) != unit
        assert (gate(model, space, keep, ids) - whole).abs().max() > 0.1


@choices
@pytest.mark.parametrize("seed", range(2))
def test_gating_a_unit_equals_zeroing_its_weights(model, space_of, ids, choice, seed) -> None:
    space = space_of(model, *choice)
    keep = random_keep(space, seed)
    found = gate(model, space, keep, ids)
    assert torch.equal(found, logits(zeroed(model, space, keep, reader_only=True), ids))
    assert torch.equal(found, logits(zeroed(model, space, keep, reader_only=False), ids))


@choices
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_compact_model_computes_what_the_gated_one_does(model, space_of, ids, choice, share) -> None:
    space = space_of(model, *choice)
    keep = random_keep(space, 7, share)
    assert_rounding_apart(compact(model, space, keep, ids), gate(model, space, keep, ids))


@choices
def test_each_unit_alone_can_be_the_one_that_is_left(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    with Compactor(model, space.layout) as compactor:
        for unit in torch.linspace(0, len(space) - 1, 5).long().tolist():
            keep = torch.arange(len(space)) == unit
            with compactor.applied(space.axis_keep(keep)):
                found = logits(model, ids)
            with gated(model, space.layout, space.axis_keep(keep)):
                assert_rounding_apart(found, logits(model, ids))


@choices
def test_with_nothing_left_the_model_is_gated_to_zero_and_still_runs(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    keep = torch.zeros(len(space), dtype=torch.bool)
    assert_rounding_apart(compact(model, space, keep, ids), gate(model, space, keep, ids))


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}], ids=lambda c: next(iter(c), ""))
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_readers_with_a_bias_agree_in_all_three_forms_whatever_is_left(tiny, space_of, ids, changes, share) -> None:
    model = tiny("llama", **changes)
    space = space_of(model, Head(), Channel())
    keep = random_keep(space, 3, share)
    assert_rounding_apart(compact(model, space, keep, ids), gate(model, space, keep, ids))


def test_the_attention_backends_agree_on_the_compact_model(llama, space_of, ids) -> None:
    space = space_of(llama, Head(), Channel())
    keep = random_keep(space, 5)
    found = compact(llama, space, keep, ids)
    eager = copy.deepcopy(llama)
    eager.set_attn_implementation("eager")
    assert_rounding_apart(compact(eager, space, keep, ids), found)


@choices
def test_gating_nothing_is_bit_identical_to_the_untouched_model(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    keep = torch.ones(len(space), dtype=torch.bool)
    assert torch.equal(gate(model, space, keep, ids), logits(model, ids))


@choices
def test_keeping_everything_runs_the_whole_weights(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    before, seen = snapshot(model), []

    def look(module: nn.Module, _inputs: object) -> None:
        seen.append(module)
        assert all(torch.equal(p, before[f"{names[module]}.{name}"]) for name, p in module.named_parameters())

    names = {module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_pre_hook(look) for module in names]
    found = compact(model, space, torch.ones(len(space), dtype=torch.bool), ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(names)
    # Not bit for bit: readers are held transposed meanwhile, and some shapes then take another matrix kernel.
    assert_rounding_apart(found, logits(model, ids))


def test_axes_that_are_not_named_stay_whole(llama, space_of, ids) -> None:
    space = space_of(llama, Head())
    keep = random_keep(space, 1)
    only_first = {"layers.0.attention": space.axis_keep(keep)["layers.0.attention"]}
    with Compactor(llama, space.layout) as compactor, compactor.applied(only_first):
        found = logits(llama, ids)
    with gated(llama, space.layout, only_first):
        assert_rounding_apart(found, logits(llama, ids))


def test_a_soft_gate_scales_what_an_entry_adds(llama, space_of, ids) -> None:
    space = space_of(llama, Mlp())
    halved = copy.deepcopy(llama)
    for layer in halved.model.layers:
        layer.mlp.down_proj.weight.data.mul_(0.5)
    halves = {name: torch.full((70,), 0.5) for name in space.axes}
    with gated(llama, space.layout, halves):
        assert torch.equal(logits(llama, ids), logits(halved, ids))


@pytest.mark.parametrize("multiple", [1, 8, 64, 1000])
def test_padding_kept_widths_does_not_change_results(model, space_of, ids, monkeypatch, multiple) -> None:
    space = space_of(model, Head(), Channel())
    keep = random_keep(space, 2)
    monkeypatch.setattr(sublayer, "KEPT_WIDTH_MULTIPLE", multiple)
    assert_rounding_apart(compact(model, space, keep, ids), gate(model, space, keep, ids))


def test_kept_widths_are_padded_to_the_multiple_and_never_beyond_the_axis(llama, space_of, ids, monkeypatch) -> None:
    monkeypatch.setattr(sublayer, "KEPT_WIDTH_MULTIPLE", 16)
    space = space_of(llama, Channel())
    mlp = llama.model.layers[0].mlp
    seen = []
    with (
        Compactor(llama, space.layout) as compactor,
        mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs: seen.append((inputs[0].shape[-1], module.weight.shape[1]))
        ),
    ):
        for count in (1, 16, 17, 64, 65, 69, 70):
            with compactor.applied(space.axis_keep(torch.arange(len(space)) < count)):
                logits(llama, ids)
    assert [wide for wide, _ in seen] == [16, 16, 32, 64, 70, 70, 70]
    assert all(given == expected for given, expected in seen)


def test_a_wide_mask_leaves_nothing_behind_for_a_narrow_one(model, space_of, ids) -> None:
    """The buffers are shared by all masks and sublayers: what an earlier mask wrote must never be read."""
    space = space_of(model, Head(), Channel())
    masks = [random_keep(space, seed, share) for seed, share in enumerate([0.95, 0.1, 0.6, 0.1, 0.95])]
    with Compactor(model, space.layout) as compactor:
        for keep in masks:
            with compactor.applied(space.axis_keep(keep)):
                found = logits(model, ids)
            with gated(model, space.layout, space.axis_keep(keep)):
                assert_rounding_apart(found, logits(model, ids))


def test_between_masks_the_whole_model_answers(llama, space_of, ids) -> None:
    space = space_of(llama, Head(), Channel())
    whole = logits(llama, ids)
    with Compactor(llama, space.layout) as compactor:
        with compactor.applied(space.axis_keep(random_keep(space, 1))):
            assert (logits(llama, ids) - whole).abs().max() > 0.1
        assert_rounding_apart(logits(llama, ids), whole)


def test_a_compactor_serves_inference_mode_and_no_grad_in_turn(tiny, space_of, ids) -> None:
    llama = tiny("llama")
    space = space_of(llama, Head(), Channel())
    keep = random_keep(space, 4)
    expected = gate(llama, space, keep, ids)
    with Compactor(llama, space.layout) as compactor:
        for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
            with compactor.applied(space.axis_keep(keep)), mode():
                assert_rounding_apart(llama(input_ids=ids, use_cache=False).logits.clone(), expected)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_restored(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.is_contiguous(), name
        assert not parameter.is_inference(), name
    for module in model.modules():
        assert "forward" not in vars(module)
        assert module.forward.__func__ is type(module).forward
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@choices
def test_afterwards_the_model_is_bit_for_bit_what_it_was(model, space_of, ids, choice) -> None:
    space = space_of(model, *choice)
    before, whole = snapshot(model), logits(model, ids)
    with Compactor(model, space.layout) as compactor:
        for seed, share in enumerate([0.0, 0.3, 0.8, 1.0]):
            with compactor.applied(space.axis_keep(random_keep(space, seed, share))), torch.inference_mode():
                model(input_ids=ids)
    assert_restored(model, before)
    gate(model, space, random_keep(space, 1), ids)
    assert_restored(model, before)
    assert torch.equal(logits(model, ids), whole)


def test_the_weights_are_whole_again_as_soon_as_a_pass_has_ended(llama, space_of, ids) -> None:
    space, before = space_of(llama, Head(), Channel()), snapshot(llama)
    with Compactor(llama, space.layout) as compactor, compactor.applied(space.axis_keep(random_keep(space, 1))):
        logits(llama, ids)
        assert all(torch.equal(parameter, before[name]) for name, parameter in llama.named_parameters())


def test_while_paused_the_model_is_what_it_was_and_goes_on_compact(llama, space_of, ids) -> None:
    space = space_of(llama, Head(), Channel())
    keep, before = random_keep(space, 2), snapshot(llama)
    compactor = Compactor(llama, space.layout)
    with compactor.paused() as untouched:
        assert_restored(untouched, before)
    assert_restored(llama, before)
    with compactor:
        with compactor.paused():
            assert_restored(llama, before)
        with compactor.applied(space.axis_keep(keep)):
            found = logits(llama, ids)
    assert_rounding_apart(found, gate(llama, space, keep, ids))
    assert_restored(llama, before)


@pytest.mark.parametrize("where", ["before any pass", "inside a sublayer", "in a gated block"])
def test_an_exception_leaves_the_model_restored(model, space_of, ids, where) -> None:
    space, before = space_of(model, Head(), Channel()), snapshot(model)
    kept = space.axis_keep(random_keep(space, 1))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("stopped by the test")

    def run() -> None:
        if where == "in a gated block":
            with gated(model, space.layout, kept):
                raise KeyboardInterrupt("stopped by the test")
        with Compactor(model, space.layout) as compactor, compactor.applied(kept):
            if where == "before any pass":
                raise KeyboardInterrupt("stopped by the test")
            with model.model.layers[1].mlp.down_proj.register_forward_hook(stop):
                logits(model, ids)

    with pytest.raises(KeyboardInterrupt, match="stopped by the test"):
        run()
    assert_restored(model, before)


def test_an_axis_that_does_not_exist_leaves_no_gate_behind(llama, space_of) -> None:
    space, before = space_of(llama, Channel()), snapshot(llama)
    bad = {"layers.0.mlp": torch.ones(70, dtype=torch.bool), "layers.9.mlp": torch.ones(70, dtype=torch.bool)}
    with pytest.raises(KeyError, match=r"layers\.9\.mlp"), gated(llama, space.layout, bad):
        pass
    assert_restored(llama, before)


def test_a_compactor_that_cannot_attach_leaves_the_model_restored(tiny, space_of, monkeypatch) -> None:
    llama = tiny("llama")
    space, before = space_of(llama, Channel()), snapshot(llama)
    attach, calls = sublayer.Sublayer.attach, []

    def fail_at_the_third(self, buffer) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise MemoryError("no room for a transposed copy")
        attach(self, buffer)

    monkeypatch.setattr(sublayer.Sublayer, "attach", fail_at_the_third)
    with pytest.raises(MemoryError), Compactor(llama, space.layout):
        pass
    assert_restored(llama, before)


# The state dict of the smaller model.


@choices
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_smaller_state_dict_lacks_exactly_the_entries_that_were_removed(model, space_of, choice, share) -> None:
    space = space_of(model, *choice)
    entries = space.axis_keep(random_keep(space, 3, share))
    state = compact_state_dict(model, space.layout, entries)
    removed = 0
    for name, keep in entries.items():
        axis = space.layout.axis[name]
        removed += int((~keep).sum()) * axis.entry_parameters + (0 if keep.any() else axis.module_parameters)
    assert sum(t.numel() for t in state.values()) == model.num_parameters() - removed
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_the_smaller_state_dict_holds_the_kept_rows_and_columns_in_order(llama, space_of) -> None:
    space = space_of(llama, Head(), Channel())
    keep = random_keep(space, 6)
    entries = space.axis_keep(keep)
    entries["layers.0.attention"] = torch.tensor([True, False, True])
    state = compact_state_dict(llama, space.layout, entries)
    attention, mlp = llama.model.layers[0].self_attn, llama.model.layers[0].mlp
    queries = torch.cat([torch.arange(12), torch.arange(24, 36)])  # two query heads of 6 a KV head
    channels = entries["layers.0.mlp"].nonzero().flatten()
    assert torch.equal(state["model.layers.0.self_attn.q_proj.weight"], attention.q_proj.weight[queries])
    assert torch.equal(state["model.layers.0.self_attn.o_proj.weight"], attention.o_proj.weight[:, queries])
    keys = torch.cat([torch.arange(6), torch.arange(12, 18)])
    assert torch.equal(state["model.layers.0.self_attn.v_proj.weight"], attention.v_proj.weight[keys])
    assert torch.equal(state["model.layers.0.mlp.up_proj.weight"], mlp.up_proj.weight[channels])
    assert torch.equal(state["model.layers.0.mlp.down_proj.weight"], mlp.down_proj.weight[:, channels])


def test_a_sublayer_with_nothing_left_is_absent_with_its_norm(model, space_of) -> None:
    space = space_of(model, Attention(), Mlp())
    keep = torch.tensor([True, False, True, True, True, False])
    names = set(compact_state_dict(model, space.layout, space.axis_keep(keep)))
    missing = set(model.state_dict()) - names
    assert {n.rsplit(".", 1)[0] for n in missing if "layernorm" in n} == {
        "model.layers.1.input_layernorm",
        "model.layers.2.post_attention_layernorm",
    }
    assert all(n.startswith(("model.layers.1.self_attn", "model.layers.2.mlp")) or "layernorm" in n for n in missing)
    assert names <= set(model.state_dict())


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True}, {"mlp_bias": True}], ids=lambda c: next(iter(c), "no bias")
)
def test_what_the_smaller_state_dict_lacks_has_no_say_in_the_masked_model(tiny, space_of, ids, changes) -> None:
    """Else the loss of a mask, and the gated model, would be those of another model than the one that is written."""
    model = tiny("llama", **changes)
    space = space_of(model, Attention(), Mlp())
    keep = torch.tensor([True, False, True, True, True, False])
    before = gate(model, space, keep, ids), compact(model, space, keep, ids)
    for name in set(model.state_dict()) - set(compact_state_dict(model, space.layout, space.axis_keep(keep))):
        model.get_parameter(name).data += 1
    assert torch.equal(gate(model, space, keep, ids), before[0])
    assert torch.equal(compact(model, space, keep, ids), before[1])


def test_keeping_everything_gives_the_models_own_state_dict(model, space_of) -> None:
    space = space_of(model, Layer())
    state = compact_state_dict(model, space.layout, space.axis_keep(torch.ones(3, dtype=torch.bool)))
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_layers_whose_names_begin_alike_are_not_confused(tiny) -> None:
    model = tiny("llama", num_hidden_layers=11)
    layout = describe(model)
    gone = {axis.name: torch.zeros(axis.size, dtype=torch.bool) for axis in layout.axes if axis.layer == 1}
    state = compact_state_dict(model, layout, gone)
    assert not any(name.startswith("model.layers.1.") for name in state)
    assert any(name.startswith("model.layers.10.") for name in state)
    assert len(model.state_dict()) - len(state) == 9


def test_the_smaller_weights_loaded_into_a_smaller_model_compute_what_the_gated_one_does(tiny, space_of, ids) -> None:
    """Every layer keeps the same counts here, so that a plain transformers model can hold the result."""
    model = tiny("qwen3")
    space = space_of(model, Head(), Channel(block=7))
    keep = torch.cat([torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).flatten(), torch.tensor([1, 0] * 15)]).bool()
    small = tiny("qwen3", num_attention_heads=4, num_key_value_heads=2, intermediate_size=35)
    small.load_state_dict(compact_state_dict(model, space.layout, space.axis_keep(keep)))
    assert_rounding_apart(logits(small, ids), gate(model, space, keep, ids))


def test_kept_rows_are_copied_in_order_into_the_given_storage() -> None:
    rows = torch.arange(24.0).view(12, 2)
    index = torch.tensor([0, 3])
    out = torch.full((6, 2), -1.0)
    found = sublayer.kept_rows(rows, 3, index, out)
    assert found.data_ptr() == out.data_ptr()
    assert torch.equal(out, torch.cat([rows[:3], rows[9:]]))
    assert torch.equal(sublayer.kept_rows(rows, 3, index), out)
    assert all(a < b for a, b in pairwise(out[:, 0].tolist()))
