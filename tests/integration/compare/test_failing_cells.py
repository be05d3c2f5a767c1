"""A plugin that fails costs its own cells, with a reason that names it, and no others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commandline import Run, polyprune, refused
from grids import FEWER, grid, results_of

from polyprune_core import MaskBatch, Provider
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.pruning.space import MaskSpace

BROKEN = Source("broken-plugins", "1.2")

pytestmark = pytest.mark.usefixtures("two_short_texts")


@dataclass(frozen=True)
class Initializer:
    answer: Callable[[MaskSpace], Any]

    def score(self, model: Any, space: MaskSpace, calibration: Any) -> Any:
        return self.answer(space)


@dataclass(frozen=True)
class Estimator:
    answer: Callable[..., Any] = lambda policy, losses: (torch.zeros_like(policy.keep_prob), None)
    masks: Callable[..., Any] = lambda policy, count, rng: policy.sample(count, rng)
    min_masks: int = 1
    mask_multiple: int = 1
    unbiased: bool = True
    precondition: str | None = None

    def sample(self, policy: Any, num_masks: int, rng: Any) -> Any:
        return self.masks(policy, num_masks, rng)

    def gradient(self, policy: Any, batch: Any, losses: Any, state: Any) -> Any:
        return self.answer(policy, losses)


def explode(*_: Any) -> Any:
    raise ZeroDivisionError("what went wrong\nand more of it")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes one more plugin known: installed(kind, name, implementation)."""
    known = load_registry().all()

    def install(kind: str, name: str, implementation: Any) -> None:
        item = Registered(kind, Provider(name, "made for a test", lambda: implementation), BROKEN)
        monkeypatch.setattr(
            "polyprune_core.plugins.registry.load_registry", lambda: Registry([*known, item], problems=())
        )

    return install


def failed_alone(run: Run, name: str, store: Path) -> str:
    """Checks that the cells of plugin `name` failed, with a reason on stderr, and no others; returns the reason."""
    assert run.status == 1, run.err
    failed = [row for row in run.rows if row["status"] == "failed"]
    assert failed
    for row in run.rows:
        assert (row["status"] == "failed") == (name in (row["initializer"], row["estimator"]))
        assert (row["perplexity"] is None) == (row["status"] == "failed")
        assert (store / "cells" / f"{row['id']}.json").exists() == (row["status"] == "ok")
    assert "Traceback" not in run.err
    lines = [line for line in run.err.splitlines() if "failed: " in line]
    assert len(lines) == len(failed)
    assert not list(store.glob("cells/*.search.safetensors"))
    for line, row in zip(lines, failed, strict=True):
        assert name in line
        assert line.endswith(row["error"])
    assert f"{len(failed)} of {len(run.rows)} cells failed" in run.err
    return failed[0]["error"]


SCORES = {
    "not finite": lambda space: torch.full((len(space),), math.nan),
    "too few": lambda space: torch.zeros(3),
    "a list": lambda space: [0.0] * len(space),
}


@pytest.mark.parametrize("fault", SCORES)
def test_an_initializer_that_returns_what_it_must_not_fails_its_own_cell(installed, tmp_path, fault) -> None:
    installed("initializer", "faulty", Initializer(SCORES[fault]))
    reason = failed_alone(grid(tmp_path, "--baselines", "faulty,random", base=FEWER), "faulty", tmp_path)
    assert "'faulty'" in reason
    assert str(BROKEN) in reason


def test_searches_from_a_failing_initializer_fail_and_those_from_others_do_not(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["not finite"]))
    run = grid(tmp_path, "--initializers", "faulty,wanda", base=FEWER)
    failed_alone(run, "faulty", tmp_path)
    assert [row["status"] for row in run.rows] == ["ok", "ok", "failed", "failed", "ok", "ok"]


GRADIENTS = {
    "too few": lambda policy, losses: (torch.zeros(3), None),
    "not finite": lambda policy, losses: (torch.full_like(policy.keep_prob, math.inf), None),
}


@pytest.mark.parametrize("fault", GRADIENTS)
def test_an_estimator_that_returns_what_it_must_not_fails_its_own_cell(installed, tmp_path, fault) -> None:
    installed("estimator", "faulty", Estimator(GRADIENTS[fault]))
    reason = failed_alone(grid(tmp_path, "--estimators", "faulty,rloo", base=FEWER), "faulty", tmp_path)
    for part in ("'faulty'", str(BROKEN), "gradient", "2088"):
        assert part in reason


MASKS = {
    "of other units": lambda policy, count, rng: MaskBatch(torch.ones(count, 3, dtype=torch.bool)),
    "too many": lambda policy, count, rng: policy.sample(3 * count, rng),
    "numbers": lambda policy, count, rng: MaskBatch(torch.rand(count, len(policy.keep_prob), generator=rng)),
}


@pytest.mark.parametrize("fault", MASKS)
def test_an_estimator_that_draws_what_it_must_not_fails_its_own_cell(installed, tmp_path, fault) -> None:
    installed("estimator", "faulty", Estimator(masks=MASKS[fault]))
    failed_alone(grid(tmp_path, "--estimators", "faulty,rloo", base=FEWER), "faulty", tmp_path)


RAISING: dict[str, tuple[str, Any]] = {
    "scores": ("initializer", Initializer(explode)),
    "masks": ("estimator", Estimator(masks=explode)),
    "gradient": ("estimator", Estimator(explode)),
    "a gradient without a state": ("estimator", Estimator(lambda policy, losses: policy.keep_prob)),
    "a gradient that is a list": ("estimator", Estimator(lambda policy, losses: ([0.0], None))),
}


@pytest.mark.parametrize("place", RAISING)
def test_an_ordinary_exception_of_a_plugin_fails_its_own_cell(installed, tmp_path, place) -> None:
    kind, implementation = RAISING[place]
    installed(kind, "faulty", implementation)
    option = {"initializer": "--baselines", "estimator": "--estimators"}[kind]
    others = {"initializer": "random", "estimator": "rloo"}[kind]
    reason = failed_alone(grid(tmp_path, option, f"faulty,{others}", base=FEWER), "faulty", tmp_path)
    assert "faulty" in reason
    assert str(BROKEN) in reason
    assert len(reason.splitlines()) == 1


def test_verbose_shows_where_in_the_plugin_it_was(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(explode))
    run = grid(tmp_path, "--baselines", "faulty", "-v", base=FEWER)
    assert run.status == 1
    assert "Traceback" in run.err
    assert re.search(r"test_failing_cells\.py., line \d+, in explode", run.err)
    assert "and more of it" in run.err


def test_an_ordinary_exception_of_a_granularity_is_one_line_that_names_it(installed, tmp_path) -> None:
    installed("granularity", "faulty", mock.Mock(groups=explode))
    refused(grid(tmp_path, "--granularity", "faulty", base=FEWER), "faulty", BROKEN)


def test_the_other_cells_and_the_model_are_as_if_the_failing_ones_were_not_there(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    mixed = grid(tmp_path / "mixed", "--baselines", "faulty,random", base=FEWER)
    alone = grid(tmp_path / "alone", base=FEWER)
    assert results_of([row for row in mixed.rows if row["initializer"] != "faulty"]) == results_of(alone.rows)


def test_a_failed_cell_is_run_again_and_the_others_are_not(installed, tmp_path, cells_run) -> None:
    asked = ("--baselines", "faulty,random")
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    assert grid(tmp_path, *asked, base=FEWER).status == 1
    cells_run.clear()
    installed("initializer", "faulty", Initializer(lambda space: torch.arange(len(space)).float()))
    mended = grid(tmp_path, *asked, base=FEWER)
    assert mended.status == 0
    assert cells_run == ["faulty"]


def test_a_failed_cell_is_a_row_of_the_table_too(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    run = polyprune(*FEWER, "-o", tmp_path, "--baselines", "faulty")
    assert run.status == 1
    assert re.search(r"^ *faulty .*failed", run.out, re.M)


def test_quiet_still_says_why_a_cell_failed(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    run = polyprune(*FEWER, "-o", tmp_path, "--baselines", "faulty", "-q")
    assert run.status == 1
    assert "'faulty'" in run.out + run.err
