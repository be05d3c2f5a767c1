"""Recovery: what it trains, what adapters become, and that after an interruption it goes on as if undisturbed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.losses import token_losses
from polyprune_core.models.describe import describe
from polyprune_core.search import checkpoint
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.testing.tiny import VOCABULARY, tiny_calibration
from polyprune_core.utils.rng import generator
from polyprune_plugins.repairs import recover
from polyprune_plugins.repairs.recover import Recover

# A text with something to learn: every token is the one before it plus one.
WINDOWS = (torch.arange(12) + torch.arange(22)[:, None]) % VOCABULARY
FEW = {"full": Recover("full", tokens=5 * 4 * 12, lr=3e-3), "lora": Recover("lora", tokens=5 * 4 * 12, rank=2, lr=1e-2)}
methods = pytest.mark.parametrize("method", FEW)


def calibration(pruned, keeper=None, progress=lambda done, total: None):
    plain = tiny_calibration(pruned.base.model)
    model = pruned.base.model
    return Calibration(
        model, describe(model), WINDOWS, generator(0, "it"), progress=progress, mend=plain._mend, keeper=keeper
    )


def loss(pruned, updates) -> float:
    return float(token_losses(replace(pruned, updates=updates).build(), WINDOWS).mean())


@methods
def test_the_text_is_predicted_better_than_before(pruned, method) -> None:
    assert loss(pruned, FEW[method].repair(pruned, calibration(pruned))) < loss(pruned, {}) - 0.02


@methods
def test_one_step_of_every_window_is_one_backward_pass(pruned, method) -> None:
    spent = calibration(pruned)
    FEW[method].repair(pruned, spent)
    assert (spent.backward_passes, spent.forward_passes, spent.forward_tokens) == (5, 5, 5 * 4 * 12)


def test_adapters_change_linear_modules_by_matrices_of_their_rank(pruned) -> None:
    updates = FEW["lora"].repair(pruned, calibration(pruned))
    before = {pruned.names()[own]: value for own, value in pruned.build().named_parameters()}
    linear = {name for name, value in before.items() if value.dim() == 2 and ".layers." in name}
    assert set(updates) == linear
    for name, value in updates.items():
        change = value - before[name]
        assert value.shape == pruned.shapes()[name]
        assert 0 < torch.linalg.matrix_rank(change, rtol=1e-3) <= 2


class Killed(BaseException):
    pass


@methods
def test_killed_and_resumed_is_as_if_undisturbed(pruned, method, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE_OF_TIME", 1e9)

    def kill(done: int, total: int) -> None:
        if total == 5 and done == 4:
            raise Killed

    expected = FEW[method].repair(pruned, calibration(pruned))
    file = tmp_path / "a.safetensors"
    with pytest.raises(Killed):
        FEW[method].repair(pruned, calibration(pruned, Checkpoint(file, "a"), kill))
    steps: list[tuple[int, int]] = []
    resumed = calibration(pruned, Checkpoint(file, "a"), lambda done, total: steps.append((done, total)))
    found = FEW[method].repair(pruned, resumed)
    assert steps == [(4, 5), (5, 5)]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_nothing_but_the_generator_it_is_given_is_drawn_from(pruned) -> None:
    state = torch.random.get_rng_state()
    one, other = (FEW["lora"].repair(pruned, calibration(pruned)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(other[name], value) for name, value in one.items())


def test_without_peft_adapters_are_refused_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(recover, "find_spec", lambda name: None)
    assert Recover().method == "full"
    with pytest.raises(ConfigError, match=r"pip install 'polyprune\[recover\]'"):
        Recover("lora")
