"""Moments of inputs: measured once on the same text, and paid for by every row as if it stood alone."""

from __future__ import annotations

import pytest
import torch
from all_metrics import calibration_for

from polyprune_core.errors import ModelError
from polyprune_core.evaluation import moments
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.moments import MomentStore, passes_over
from polyprune_core.models.describe import describe
from polyprune_core.utils.rng import generator

AXIS = "layers.1.mlp"
COSTS = ("forward_passes", "forward_tokens", "backward_passes")


def shared(model, windows, store, readings=()):
    return Calibration(model, describe(model), windows, generator(0, "metric"), 2, store=store, readings=readings)


def costs(calibration):
    return tuple(getattr(calibration, cost) for cost in COSTS)


def test_moments_are_the_means_of_a_readers_inputs_and_of_their_products(llama, ids) -> None:
    seen = []
    reader = llama.model.layers[1].mlp.down_proj
    with torch.no_grad(), reader.register_forward_pre_hook(lambda _, x: seen.append(x[0].double().flatten(0, 1))):
        llama(input_ids=ids)
    calibration = calibration_for(llama, ids, 2)
    found = calibration.moments(AXIS)
    torch.testing.assert_close(found.mean.double(), seen[0].mean(dim=0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.second.double(), seen[0].T @ seen[0] / len(seen[0]), rtol=1e-5, atol=1e-7)
    calibration.moments("layers.0.attention")
    assert costs(calibration) == (3, 60, 0)


def test_nobody_can_change_the_moments_of_others(llama, ids) -> None:
    calibration = calibration_for(llama, ids)
    before = calibration.moments(AXIS).second.clone()
    calibration.moments(AXIS).second.zero_()
    assert torch.equal(calibration.moments(AXIS).second, before)


@pytest.mark.parametrize("carried", [True, False])
def test_a_model_whose_products_do_not_fit_is_read_layer_by_layer_or_else_in_several_passes(
    llama, ids, monkeypatch, carried
) -> None:
    layout, whole = describe(llama), calibration_for(llama, ids, 2)
    expected = {axis.name: whole.moments(axis.name) for axis in layout.axes}
    assert len(list(passes_over(llama, layout, layout.axis[AXIS].reader_module))) == 1
    monkeypatch.setattr(moments, "AT_A_TIME", 4.0 * 70**2)
    passes = list(passes_over(llama, layout, layout.axis[AXIS].reader_module))
    assert [reader for readers in passes for reader in readers] == [axis.reader_module for axis in layout.axes]
    assert len(passes) > 2
    store = MomentStore()
    store.carried = carried
    calibration = shared(llama, ids, store)
    for name, found in expected.items():
        assert torch.equal(calibration.moments(name).second, found.second)
        assert torch.equal(calibration.moments(name).mean, found.mean)
    assert calibration.forward_passes == 3 * (1 if carried else len(passes))


def test_every_family_has_the_same_moments_layer_by_layer_or_says_that_it_cannot(model, ids, monkeypatch) -> None:
    layout = describe(model)
    axes = [axis.name for axis in layout.axes if axis.reader is not None]
    whole = shared(model, ids, MomentStore())
    expected = {name: whole.moments(name).second for name in axes}
    monkeypatch.setattr(moments, "AT_A_TIME", 1.0)
    calibration = shared(model, ids, MomentStore())
    for name in axes:
        assert torch.equal(calibration.moments(name).second, expected[name])
    if layout.family in ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2"):
        assert calibration.forward_passes == 3


def test_what_does_not_fit_in_memory_lies_in_a_folder_that_goes_with_the_store(llama, ids) -> None:
    store, calibration = MomentStore(in_memory=4.0 * 70**2), calibration_for(llama, ids)
    spilling = shared(llama, ids, store)
    spilling.batch_size = calibration.batch_size
    for axis in describe(llama).axes:
        assert torch.equal(spilling.moments(axis.name).second, calibration.moments(axis.name).second)
    (folder,) = {held.parent for held in store._held.values() if not isinstance(held, moments.Moments)}
    assert folder.is_dir()
    del store, spilling
    assert not folder.exists()


def test_who_asks_second_gets_the_same_and_pays_as_if_alone(llama, ids) -> None:
    store = MomentStore()
    first, second = shared(llama, ids, store), shared(llama, ids, store)
    assert torch.equal(first.moments(AXIS).second, second.moments(AXIS).second)
    assert costs(first) == costs(second) == (3, 60, 0)
    assert (first.seconds_elsewhere, second.seconds_elsewhere > 0) == (0, True)


def test_a_pass_that_the_row_bears_already_is_not_paid_for_again(llama, ids) -> None:
    store = MomentStore()
    metric = shared(llama, ids, store)
    metric.moments(AXIS)
    same = shared(llama, ids, store, metric.readings)
    same.moments(AXIS)
    assert (costs(same), same.seconds_elsewhere) == ((0, 0, 0), 0)
    other = shared(llama, ids[:4], store, metric.readings)
    other.moments(AXIS)
    assert costs(other) == (2, 48, 0)


def test_an_axis_without_a_reader_has_no_moments(llama, ids) -> None:
    from dataclasses import replace

    layout = describe(llama)
    bare = replace(layout, axes=tuple(replace(axis, reader=None) for axis in layout.axes))
    with pytest.raises(ModelError, match=f"no linear module reads {AXIS}"):
        Calibration(llama, bare, ids, generator(0, "metric")).moments(AXIS)
