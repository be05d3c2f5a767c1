"""Distillation: what it trains, what that costs, and that after an interruption it goes on as if undisturbed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div

from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.models.describe import describe
from polyprune_core.search import checkpoint
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.testing.tiny import (
    VOCABULARY,
    logits_of,
    tiny_calibration,
    tiny_windows,
)
from polyprune_core.utils.rng import generator
from polyprune_plugins.repairs.distil import Distil
from polyprune_plugins.repairs.least_squares import LeastSquares

WINDOWS = torch.randint(VOCABULARY, (22, 12), generator=generator(0, "windows"))
FEW = Distil(start="least-squares", tokens=5 * 4 * 12, lr=3e-3)


def calibration(pruned, keeper=None, progress=lambda done, total: None):
    plain = tiny_calibration(pruned.base.model)
    return Calibration(
        pruned.base.model,
        describe(pruned.base.model),
        WINDOWS,
        generator(0, "distil"),
        progress=progress,
        mend=plain._mend,
        keeper=keeper,
    )


def divergence(pruned, updates) -> float:
    wanted = logits_of(pruned.base.model).log_softmax(dim=-1)
    given = logits_of(replace(pruned, updates=updates).build()).log_softmax(dim=-1)
    return float(kl_div(given, wanted, reduction="sum", log_target=True) / tiny_windows().numel())


def test_it_brings_the_pruned_model_closer_to_the_dense_one_than_its_start(pruned) -> None:
    start = dict(LeastSquares().repair(pruned, calibration(pruned)))
    assert divergence(pruned, FEW.repair(pruned, calibration(pruned))) < 0.95 * divergence(pruned, start)


@pytest.mark.parametrize("train", ["readers", "all"])
def test_it_changes_what_it_is_told_to_under_the_names_of_the_dense_model(pruned, train) -> None:
    updates = replace(FEW, start="none", train=train).repair(pruned, calibration(pruned))
    readers = {f"model.layers.{i}.{r}.weight" for i in (0, 2) for r in ("self_attn.o_proj", "mlp.down_proj")}
    fixed = {"model.embed_tokens.weight", "lm_head.weight"}
    assert updates.keys() == (readers if train == "readers" else pruned.shapes().keys() - fixed)
    before = dict(replace(pruned, updates={}).state_dict())
    names = {dense: own for own, dense in pruned.names().items()}
    for name, value in updates.items():
        assert value.shape == pruned.shapes()[name]
        assert not torch.equal(value, before[names[name]])


def test_its_passes_are_counted_with_those_of_its_start(pruned) -> None:
    alone, whole = calibration(pruned), calibration(pruned)
    LeastSquares().repair(pruned, alone)
    FEW.repair(pruned, whole)
    assert whole.backward_passes == 5
    assert whole.forward_passes == alone.forward_passes + 10
    assert whole.forward_tokens == alone.forward_tokens + 2 * FEW.tokens


def test_no_window_is_trained_on_twice(pruned) -> None:
    found = calibration(pruned)
    replace(FEW, start="none", tokens=10**6).repair(pruned, found)
    assert found.backward_passes == len(WINDOWS) // 4


def rates(monkeypatch, pruned, **options) -> list[float]:
    """The learning rate of every step."""
    found, step = [], torch.optim.AdamW.step

    def watched(self, *arguments, **more):
        found.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    replace(FEW, start="none", **options).repair(pruned, calibration(pruned))
    return found


def test_the_learning_rate_rises_to_the_highest_and_falls_to_the_end(pruned, monkeypatch) -> None:
    assert rates(monkeypatch, pruned, warmup=0.4) == pytest.approx([1e-3, 2e-3, 3e-3, 2.25e-3, 0.75e-3])
    cosine = [3e-3 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert rates(monkeypatch, pruned, warmup=0.0) == pytest.approx(cosine)


class Killed(BaseException):
    pass


def test_killed_and_resumed_is_as_if_undisturbed(pruned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE_OF_TIME", 1e9)

    def kill(done: int, total: int) -> None:
        if total == 5 and done == 4:
            raise Killed

    undisturbed = calibration(pruned)
    expected = FEW.repair(pruned, undisturbed)
    with pytest.raises(Killed):
        FEW.repair(pruned, calibration(pruned, Checkpoint(tmp_path / "a.safetensors", "a"), kill))
    steps = []
    resumed = calibration(
        pruned, Checkpoint(tmp_path / "a.safetensors", "a"), lambda done, total: steps.append((done, total))
    )
    found = FEW.repair(pruned, resumed)
    assert steps == [(4, 5), (5, 5)]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    costs = ("forward_passes", "forward_tokens", "backward_passes")
    assert [getattr(resumed, cost) for cost in costs] == [getattr(undisturbed, cost) for cost in costs]
