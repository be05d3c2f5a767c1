"""The repair layer by layer, against a fit written out on the inputs themselves, one layer after another."""

from __future__ import annotations

from dataclasses import replace

import torch

from polyprune_core.testing.tiny import tiny_base, tiny_calibration, tiny_pruned, tiny_space
from polyprune_plugins.repairs.least_squares import LeastSquares
from polyprune_plugins.repairs.sequential import Sequential

TEXT = torch.randint(97, (24, 16), generator=torch.Generator().manual_seed(0))
RIDGE = 0.1


def some_pruned(tmp_path):
    base = tiny_base(tmp_path / "base")
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) < 0.6
    for where in space.slices():
        keep[where.start] = True
    return tiny_pruned(base, space, keep)


def watched(model, names, ids=TEXT):
    """Returns inputs and outputs of modules by name, (tokens, features) float64."""
    seen = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.__setitem__(
                name, (inputs[0].flatten(0, -2).double(), output.flatten(0, -2).double())
            )
        )
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return seen


def with_updates(pruned, updates):
    return replace(pruned, updates=updates).build()


def test_every_reader_is_fitted_to_what_it_gave_and_to_what_the_stream_has_lost_before_it(tmp_path) -> None:
    pruned = some_pruned(tmp_path)
    found = Sequential(ridge=RIDGE).repair(pruned, tiny_calibration(pruned.base.model, windows=TEXT))

    readers = {reader.module: reader for reader in pruned.left_readers()}
    order = [f"model.layers.{i}.{name}" for i in range(3) for name in ("self_attn.o_proj", "mlp.down_proj")]
    dense = watched(pruned.base.model, order)
    expected: dict[str, torch.Tensor] = {}
    for place, name in enumerate(order):
        small = watched(with_updates(pruned, expected), order)
        lost = sum(dense[before][1] - small[before][1] for before in order[:place])
        inputs, target = small[name][0], dense[name][1] + lost
        centred = inputs - inputs.mean(dim=0)
        covariance = centred.T @ centred / len(inputs)
        ridge = RIDGE * covariance.diag().median()
        old = readers[name].weight[:, readers[name].keep].double()
        rows = torch.cat([centred / len(inputs) ** 0.5, ridge**0.5 * torch.eye(len(old.T), dtype=torch.float64)])
        wanted = torch.cat([(target - target.mean(dim=0)) / len(inputs) ** 0.5, ridge**0.5 * old.T])
        weight = torch.linalg.lstsq(rows, wanted).solution.T
        expected[f"{name}.weight"] = weight.float()
        expected[f"{name}.bias"] = (target.mean(dim=0) - weight @ inputs.mean(dim=0)).float()

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=2e-3)


def test_the_last_layer_ends_nearer_to_the_dense_model_than_after_one_fit_for_all(tmp_path) -> None:
    pruned = some_pruned(tmp_path)

    def distance(repair) -> float:
        updates = dict(repair.repair(pruned, tiny_calibration(pruned.base.model, windows=TEXT)))
        states = [
            model(input_ids=TEXT, output_hidden_states=True).hidden_states[-1]
            for model in (pruned.base.model, with_updates(pruned, updates))
        ]
        return float((states[0] - states[1]).norm())

    assert distance(Sequential()) < distance(LeastSquares())


def test_the_text_passes_once_through_the_dense_model_and_thrice_through_the_pruned_one(tmp_path) -> None:
    pruned = some_pruned(tmp_path)
    calibration = tiny_calibration(pruned.base.model, windows=TEXT)
    Sequential().repair(pruned, calibration)
    assert (calibration.forward_passes, calibration.forward_tokens) == (4, 4 * TEXT.numel())


def test_nothing_is_changed_where_nothing_is_removed(tmp_path) -> None:
    pruned = some_pruned(tmp_path)
    whole = tiny_pruned(pruned.base, pruned.space, torch.ones(len(pruned.space), dtype=torch.bool))
    calibration = tiny_calibration(pruned.base.model, windows=TEXT)
    assert (Sequential().repair(whole, calibration), calibration.forward_passes) == ({}, 0)
