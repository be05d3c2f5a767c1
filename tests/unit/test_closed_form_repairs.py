"""Repairs in closed form against independent computations on the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from polyprune_core.errors import PluginError
from polyprune_core.plugins.registry import load_registry
from polyprune_core.testing.tiny import tiny_base, tiny_calibration, tiny_pruned, tiny_space
from polyprune_plugins.repairs.least_squares import LeastSquares
from polyprune_plugins.repairs.rotation import Rotation
from polyprune_plugins.repairs.scale import Scale

EMPTIED = "layers.1.mlp"
ALL = [LeastSquares(), LeastSquares(bias=False), Scale(), Scale(of="column"), Rotation()]
MANY = torch.randint(97, (24, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["without biases", "with biases"])
def pruned(request, tmp_path):
    """A model with one sublayer gone; its readers have no biases, or all have."""
    base = tiny_base(tmp_path / "base")
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) < 0.6
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where.start] = True
        if group.spans[0][0] == EMPTIED:
            keep[where] = False
    if request.param == "with biases":
        for index, axis in enumerate(space.layout.axes):
            values = torch.randn(36, generator=torch.Generator().manual_seed(index))
            base.model.get_submodule(axis.reader_module).bias = torch.nn.Parameter(values, requires_grad=False)
    return tiny_pruned(base, space, keep)


def repaired(repair, pruned):
    return dict(repair.repair(pruned, tiny_calibration(pruned.base.model, windows=MANY)))


def inputs_of(pruned) -> dict[str, torch.Tensor]:
    """Returns what each reader takes in over the text: (tokens, F) float64."""
    seen: dict[str, torch.Tensor] = {}
    model = pruned.base.model
    names = {axis.reader_module for axis in pruned.layout.axes}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].flatten(0, -2).double())
        )
        for name in names
    ]
    model(input_ids=MANY)
    for hook in hooks:
        hook.remove()
    return seen


def outputs(pruned, updates) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Returns, by reader, its outputs (tokens, out) in the dense model, and those that are left after `updates`."""
    seen, found = inputs_of(pruned), {}
    for reader in pruned.cut_readers():
        x, old = seen[reader.module], torch.zeros(36) if reader.bias is None else reader.bias
        weight = updates.get(f"{reader.module}.weight", reader.weight[:, reader.keep]).double()
        bias = updates.get(f"{reader.module}.bias", old).double()
        found[reader.module] = x @ reader.weight.double().T + old, x[:, reader.keep] @ weight.T + bias
    return found


def test_readers_that_lost_something_are_refitted_and_no_others(pruned) -> None:
    cut = {reader.module for reader in pruned.cut_readers()}
    gone = pruned.layout.axis[EMPTIED].reader_module
    assert gone not in cut
    for repair in ALL:
        updates = repaired(repair, pruned)
        assert {name.rpartition(".")[0] for name in updates} == cut
        biases = {name for name in updates if name.endswith(".bias")}
        assert len(biases) == (len(cut) if repair == LeastSquares() else 0)


def test_nothing_is_changed_where_nothing_is_removed(pruned) -> None:
    whole = tiny_pruned(pruned.base, pruned.space, torch.ones(len(pruned.space), dtype=torch.bool))
    for repair in ALL:
        calibration = tiny_calibration(pruned.base.model)
        assert (repair.repair(whole, calibration), calibration.forward_passes) == ({}, 0)


@pytest.mark.parametrize("bias", [True, False])
def test_without_a_ridge_it_is_the_least_squares_of_numpy(pruned, bias) -> None:
    found = outputs(pruned, repaired(LeastSquares(ridge=1e-9, bias=bias), pruned))
    seen = inputs_of(pruned)
    for reader in pruned.cut_readers():
        wanted, got = found[reader.module]
        old = 0 if bias or reader.bias is None else reader.bias
        known = seen[reader.module][:, reader.keep]
        if bias:
            known = torch.cat([known, torch.ones(len(known), 1, dtype=known.dtype)], dim=1)
        fit, *_ = np.linalg.lstsq(known.numpy(), (wanted - old).numpy(), rcond=None)
        expected = known.numpy() @ fit + np.asarray(old)
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_the_ridge_pulls_towards_the_weights_as_they_were(pruned, bias) -> None:
    """As stacked rows: one for every token, and one for every kept column with the weight of the ridge."""
    updates, seen = repaired(LeastSquares(ridge=0.5, bias=bias), pruned), inputs_of(pruned)
    for reader in pruned.cut_readers():
        x, weight = seen[reader.module], reader.weight.double()
        centred = x - x.mean(dim=0) if bias else x
        ridge = 0.5 * centred.square().mean(dim=0).median()
        known = torch.cat([centred[:, reader.keep], (len(x) * ridge).sqrt() * torch.eye(int(reader.keep.sum()))])
        wanted = torch.cat([centred @ weight.T, (len(x) * ridge).sqrt() * weight[:, reader.keep].T])
        fit, *_ = np.linalg.lstsq(known.numpy(), wanted.numpy(), rcond=None)
        np.testing.assert_allclose(updates[f"{reader.module}.weight"].numpy(), fit.T, atol=1e-4)


def test_with_the_bias_the_mean_output_is_that_of_the_dense_model(pruned) -> None:
    for wanted, got in outputs(pruned, repaired(LeastSquares(), pruned)).values():
        torch.testing.assert_close(got.mean(dim=0), wanted.mean(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("repair", ALL, ids=str)
def test_the_error_on_the_calibration_text_is_never_larger_than_without_a_repair(pruned, repair) -> None:
    plain, after = outputs(pruned, {}), outputs(pruned, repaired(repair, pruned))
    for name, (wanted, got) in plain.items():
        error, before = ((each - wanted).square().mean() for each in (after[name][1], got))
        assert error < before


def test_a_scale_leaves_the_direction_of_every_unit_and_solves_the_normal_equations(pruned) -> None:
    updates, seen = repaired(Scale(ridge=0), pruned), inputs_of(pruned)
    for reader in pruned.cut_readers():
        x, weight = seen[reader.module], reader.weight.double()
        units = reader.units[reader.keep].unique().tolist()
        adds = torch.stack([(x[:, reader.units == u] @ weight[:, reader.units == u].T).flatten() for u in units], dim=1)
        fit, *_ = np.linalg.lstsq(adds.numpy(), (x @ weight.T).flatten().numpy(), rcond=None)
        factor = dict(zip(units, fit, strict=True))
        expected = weight[:, reader.keep] * torch.tensor([factor[u] for u in reader.units[reader.keep].tolist()])
        torch.testing.assert_close(updates[f"{reader.module}.weight"].double(), expected, rtol=1e-2, atol=1e-3)


def test_a_rotation_is_orthogonal_and_no_other_is_closer(pruned) -> None:
    updates, seen = repaired(Rotation(), pruned), inputs_of(pruned)
    rng = torch.Generator().manual_seed(0)
    for reader in pruned.cut_readers():
        x, weight = seen[reader.module], reader.weight.double()
        left, new = weight[:, reader.keep], updates[f"{reader.module}.weight"].double()
        torch.testing.assert_close(new.T @ new, left.T @ left, rtol=1e-4, atol=1e-5)
        wanted, known = x @ weight.T, x[:, reader.keep]
        best = (wanted - known @ new.T).square().mean()
        for _ in range(5):
            turn, _ = torch.linalg.qr(torch.eye(36) + 0.05 * torch.randn(36, 36, generator=rng).double())
            assert best < (wanted - known @ (turn @ new).T).square().mean()


def test_inputs_that_are_always_nought_do_no_harm(pruned) -> None:
    """No ridge, and half of a reader's inputs are never anything but nought."""
    model = pruned.base.model
    model.model.layers[0].mlp.up_proj.weight.data[::2] = 0
    for repair in (LeastSquares(ridge=0), Scale(ridge=0), Scale("column", ridge=0), Rotation()):
        assert all(bool(value.isfinite().all()) for value in repaired(repair, pruned).values())


@pytest.mark.parametrize("make", [LeastSquares, Scale])
def test_a_ridge_below_nought_is_refused(make: Callable[..., object]) -> None:
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(PluginError, match="give 0 or a number above 0"):
            make(ridge=ridge)


def test_options_are_read_from_the_command_line(pruned) -> None:
    built = load_registry().build("repair", "least-squares:ridge=0.2:bias=false")
    updates = built.repair(pruned, tiny_calibration(pruned.base.model, windows=MANY))
    expected = repaired(LeastSquares(0.2, False), pruned)
    assert all(torch.equal(value, expected[name]) for name, value in updates.items())
    assert updates.keys() == expected.keys()


def test_a_repaired_model_survives_being_built(pruned) -> None:
    for repair in ALL:
        whole = replace(pruned, updates=repaired(repair, pruned))
        if not any("bias" in name for name in dict(pruned.base.model.named_parameters())):
            assert whole.parameters == whole.build().num_parameters()
