"""What the benchmark of estimators says of noisy gradients, where the answer is known."""

from __future__ import annotations

import itertools
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polyprune_core.pruning.types import Policy

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
STATISTICS = runpy.run_path(str(FOLDER / "gradient_statistics.py"))
Series, exactly, inner, compare = (STATISTICS[name] for name in ("Series", "exactly", "inner", "compare"))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "estimator_variance.py"))


def noisy(gradient: torch.Tensor, noise: float, count: int, per_step: int = 1, seed: int = 0) -> Any:
    values = gradient + noise * torch.randn(count, len(gradient), generator=torch.Generator().manual_seed(seed))
    return Series(values.double(), torch.arange(count) // per_step + 1000 * seed)


def pairs(a: Any, b: Any, without: int | None = None) -> list[float]:
    return [
        float(x @ y)
        for (x, i), (y, j) in itertools.product(
            zip(a.values, a.step.tolist(), strict=True), zip(b.values, b.step.tolist(), strict=True)
        )
        if i != j and without not in (i, j)
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_products_are_of_different_steps_only() -> None:
    a, b = noisy(torch.ones(3), 1.0, 8, per_step=2), noisy(torch.ones(3), 2.0, 5)
    for first, second in ((a, a), (a, b), (b, a)):
        assert inner(first, second) == pytest.approx(mean(pairs(first, second)))


def test_the_error_of_a_product_is_the_jackknife_over_steps() -> None:
    a, b = noisy(torch.ones(3), 1.0, 8, per_step=2), noisy(torch.ones(3), 2.0, 5)
    left_out = [mean(pairs(a, b, without)) for without in range(5)]
    expected = math.sqrt(sum((value - mean(left_out)) ** 2 for value in left_out) * 4 / 5)
    assert STATISTICS["inner_error"](a, b) == pytest.approx(expected)


def test_noise_is_taken_out_of_bias_and_direction() -> None:
    gradient = torch.tensor([3.0, 0.0, 4.0])
    known = exactly(gradient.double())
    assert inner(known, known) == pytest.approx(25)
    found = compare(noisy(gradient, 5.0, 20000, seed=1), known, passes=10)
    assert found["variance_per_pass"] == pytest.approx(75, rel=0.03)
    assert (found["bias"] or 0) < 0.1
    assert found["direction"] == pytest.approx(1, abs=0.01)
    assert found["cosine"] == pytest.approx(math.sqrt(25 / (25 + 7.5)), abs=0.01)
    off = compare(noisy(torch.tensor([0.0, 3.0, 4.0]), 5.0, 20000, seed=2), known, passes=10)
    assert off["bias"] == pytest.approx(math.sqrt(18 / 25), abs=0.05)
    assert off["direction"] == pytest.approx(16 / 25, abs=0.02)


def test_a_reference_that_is_all_noise_says_nothing() -> None:
    found = compare(noisy(torch.zeros(3), 1.0, 50), noisy(torch.zeros(3), 1.0, 50, seed=1), passes=4)
    assert found["variance_per_pass"] > 0
    assert [found[name] for name in ("bias", "direction", "cosine", "cosine_error")] == [None] * 4


def test_variances_of_crossed_effects_are_told_apart() -> None:
    rng = torch.Generator().manual_seed(0)
    masks, windows = 0.3 * torch.randn(400, 1, generator=rng), 2 * torch.randn(1, 500, generator=rng)
    parts = STATISTICS["components"](4 + masks + windows + 0.5 * torch.randn(400, 500, generator=rng))
    assert parts["masks"] == pytest.approx(0.09, rel=0.2)
    assert parts["windows"] == pytest.approx(4, rel=0.2)
    assert parts["both"] == pytest.approx(0.25, rel=0.02)
    assert STATISTICS["spread"]({"masks": 1.0, "windows": 8.0, "both": 4.0}, 2) == {
        "over_masks": math.sqrt(3),
        "over_batches": math.sqrt(6),
        "over_both": math.sqrt(7),
    }


def test_the_gradient_from_a_table_is_that_of_the_expected_loss(benchmark: dict[str, Any]) -> None:
    space, losses = range(4), torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    table = benchmark["Table"](losses, SimpleNamespace(space=space, vocabulary=9), torch.zeros(3, 5))
    masks = benchmark["all_masks"](4)
    for window in range(3):
        torch.testing.assert_close(table.losses(masks, torch.tensor([[window]])), losses[:, window])
    s = torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    expected = (torch.where(masks, s, 1 - s).prod(dim=1) * losses.mean(dim=1)).sum()
    torch.testing.assert_close(table.gradient(Policy(s.detach())), torch.autograd.grad(expected, s)[0])


def test_what_was_measured_is_not_measured_again_unless_the_settings_differ(
    benchmark: dict[str, Any], tmp_path: Path
) -> None:
    path, made = tmp_path / "out.json", []

    def work() -> list[float]:
        made.append(1)
        return [1 / 3]

    assert benchmark["Kept"](path, {"steps": 1}).part("losses", work) == [0.3333333]
    assert benchmark["Kept"](path, {"steps": 1}).part("losses", work) == [0.3333333]
    assert len(made) == 1
    benchmark["Kept"](path, {"steps": 2}).part("losses", work)
    assert len(made) == 2
