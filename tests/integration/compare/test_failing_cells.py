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


def added(monkeypatch: pytest.MonkeyPatch, plugins: dict[str, tuple[str, Any]]) -> None:
    """Makes more plugins known: (kind, implementation) by their names."""
    known = load_registry().all()
    more = [
        Registered(kind, Provider(name, "made for a test", lambda made=made: made), BROKEN)
        for name, (kind, made) in plugins.items()
    ]
    monkeypatch.setattr("polyprune_core.plugins.registry.load_registry", lambda: Registry([*known, *more], problems=()))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes one more plugin known: installed(kind, name, implementation)."""
    return lambda kind, name, implementation: added(monkeypatch, {name: (kind, implementation)})


def grid_with(
    patch: pytest.MonkeyPatch, plugins: dict[str, tuple[str, Any]], store: Path
) -> tuple[Run, dict[str, str]]:
    """Runs each of the plugins in a cell of its own, before sound ones; returns the run, and the reasons by plugin."""

    def names(kind: str) -> str:
        return ",".join(name for name, (of, _) in plugins.items() if of == kind)

    added(patch, plugins)
    asked = ("--baselines", names("initializer") + ",random", "--estimators", names("estimator") + ",rloo")
    run = grid(store, *asked, base=FEWER)
    return run, failed_alone(run, store, *plugins)


def failed_alone(run: Run, store: Path, *names: str) -> dict[str, str]:
    """Checks that the cells of these plugins failed, with a reason on stderr, and no others; returns the reasons."""
    assert run.status == 1, run.err
    failed = [row for row in run.rows if row["status"] == "failed"]
    assert failed
    for row in run.rows:
        assert (row["status"] == "failed") == bool({row["initializer"], row["estimator"]} & {*names})
        assert (row["perplexity"] is None) == (row["status"] == "failed")
        assert (store / "cells" / f"{row['id']}.json").exists() == (row["status"] == "ok")
    assert "Traceback" not in run.err
    lines = [line for line in run.err.splitlines() if "failed: " in line]
    assert len(lines) == len(failed)
    assert not list(store.glob("cells/*.search.safetensors"))
    reasons = {}
    for line, row in zip(lines, failed, strict=True):
        (name,) = {row["initializer"], row["estimator"]} & {*names}
        assert name in line
        assert line.endswith(row["error"])
        reasons[name] = row["error"]
    assert f"{len(failed)} of {len(run.rows)} cells failed" in run.err
    return reasons


FAULTY: dict[str, tuple[str, Any]] = {
    "not-finite": ("initializer", Initializer(lambda space: torch.full((len(space),), math.nan))),
    "too-few": ("initializer", Initializer(lambda space: torch.zeros(3))),
    "a-list": ("initializer", Initializer(lambda space: [0.0] * len(space))),
    "raises": ("initializer", Initializer(explode)),
    "few-slopes": ("estimator", Estimator(lambda policy, losses: (torch.zeros(3), None))),
    "steep": ("estimator", Estimator(lambda policy, losses: (torch.full_like(policy.keep_prob, math.inf), None))),
    "other-units": (
        "estimator",
        Estimator(masks=lambda policy, count, rng: MaskBatch(torch.ones(count, 3, dtype=torch.bool))),
    ),
    "too-many": ("estimator", Estimator(masks=lambda policy, count, rng: policy.sample(3 * count, rng))),
    "numbers": (
        "estimator",
        Estimator(masks=lambda policy, count, rng: MaskBatch(torch.rand(count, len(policy.keep_prob), generator=rng))),
    ),
    "raises-on-masks": ("estimator", Estimator(masks=explode)),
    "raises-on-losses": ("estimator", Estimator(explode)),
    "no-state": ("estimator", Estimator(lambda policy, losses: policy.keep_prob)),
    "list-of-slopes": ("estimator", Estimator(lambda policy, losses: ([0.0], None))),
}
TOO_FEW = FAULTY["too-few"][1]


@pytest.fixture(scope="module")
def mixed(two_short_texts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, str]]:
    """A grid with every fault in a cell of its own, and the reasons by their plugins."""
    store = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch:
        return grid_with(patch, FAULTY, store)


@pytest.mark.parametrize("name", FAULTY)
def test_a_plugin_at_fault_fails_its_own_cell_and_is_named(mixed, name) -> None:
    reason = mixed[1][name]
    for part in (FAULTY[name][0], f"'{name}'", str(BROKEN)):
        assert part in reason
    assert len(reason.splitlines()) == 1
    if name in ("few-slopes", "steep"):
        assert "gradient" in reason
        assert "2088" in reason


def test_the_other_cells_and_the_model_are_as_if_the_failing_ones_were_not_there(mixed, tmp_path) -> None:
    alone = grid(tmp_path, base=FEWER)
    assert results_of([row for row in mixed[0].rows if row["status"] == "ok"]) == results_of(alone.rows)


def test_searches_from_a_failing_initializer_fail_and_those_from_others_do_not(installed, tmp_path) -> None:
    installed("initializer", "faulty", FAULTY["not-finite"][1])
    run = grid(tmp_path, "--initializers", "faulty,wanda", base=FEWER)
    failed_alone(run, tmp_path, "faulty")
    assert [row["status"] for row in run.rows] == ["ok", "ok", "failed", "failed", "ok", "ok"]


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


def test_a_failed_cell_is_run_again_and_the_others_are_not(installed, tmp_path, cells_run) -> None:
    asked = ("--baselines", "faulty,random")
    installed("initializer", "faulty", TOO_FEW)
    assert grid(tmp_path, *asked, base=FEWER).status == 1
    cells_run.clear()
    installed("initializer", "faulty", Initializer(lambda space: torch.arange(len(space)).float()))
    mended = grid(tmp_path, *asked, base=FEWER)
    assert mended.status == 0
    assert cells_run == ["faulty"]


def test_a_failed_cell_is_a_row_of_the_table_too(installed, tmp_path) -> None:
    installed("initializer", "faulty", TOO_FEW)
    run = polyprune(*FEWER, "-o", tmp_path, "--baselines", "faulty")
    assert run.status == 1
    assert re.search(r"^ *faulty .*failed", run.out, re.M)


def test_quiet_still_says_why_a_cell_failed(installed, tmp_path) -> None:
    installed("initializer", "faulty", TOO_FEW)
    run = polyprune(*FEWER, "-o", tmp_path, "--baselines", "faulty", "-q")
    assert run.status == 1
    assert "'faulty'" in run.out + run.err
