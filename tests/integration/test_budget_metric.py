"""A metric made for one budget: what it is told, how often it is asked, and that the run selects what it decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from polyprune_core import PluginError, Provider, Selection, SelectionRule
from polyprune_core.config.cell import Cell
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.pydocs import calibration_text, evaluation_text
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.opening import open_harness
from polyprune_core.utils.progress import Reporter


@dataclass(frozen=True)
class LowerLayersFirst:
    """Wanda with the lower layers given up first; remembers what it was asked and what it saw selected."""

    seen: list[tuple[SelectionRule, Selection]] = field(default_factory=list)

    def score(self, model: Any, space: Any, calibration: Any) -> torch.Tensor:
        scores = calibration.score("wanda", space, "zscore") + 3.0 * space.layer
        self.seen.append((calibration.budget, calibration.budget.select(scores, space)))
        return scores


@dataclass(frozen=True)
class Peeking:
    """Reads a budget that it does not say it needs."""

    def score(self, model: Any, space: Any, calibration: Any) -> torch.Tensor:
        return torch.full((len(space),), calibration.budget.sparsity)


@pytest.fixture(scope="module")
def metric() -> LowerLayersFirst:
    return LowerLayersFirst()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, metric: LowerLayersFirst) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "learn.txt").write_text(calibration_text()[:9_000], "utf-8")
    (folder / "test.txt").write_text(evaluation_text()[:9_000], "utf-8")
    needs = {"made-for-it": frozenset({"calibration", "budget"}), "peeking": frozenset({"calibration"})}
    made = {"made-for-it": lambda: metric, "peeking": Peeking}
    items = [
        Registered("initializer", Provider(name, "made for a test", made[name], needs[name]), Source("test", "1"))
        for name in needs
    ]
    config = Comparison(
        model="tiny",
        calibration=str(folder / "learn.txt"),
        evaluation=str(folder / "test.txt"),
        calibration_samples=4,
        seq_len=32,
        eval_seq_len=32,
        limit=4,
        min_keep=2,
        steps=2,
    )
    harness = open_harness(config, Registry([*load_registry().all(), *items], ()), Reporter())
    with harness.compactor:
        yield harness


def grid(**lists: Any) -> list[Cell]:
    settings = {"baselines": ("made-for-it",), "initializers": ("made-for-it",), "sparsity": (0.2, 0.4)} | lists
    return cells(Comparison(**settings))[1:]


@pytest.mark.parametrize("scope", ["kind", "global", "layer"])
def test_what_it_selects_is_selected_whatever_scale_the_run_asks_for(harness, metric, scope) -> None:
    for cell in grid(scale=("zscore", "raw", "per-parameter"), scope=scope):
        decision = Decider(harness).decide(cell)
        seen = {asked: selection.keep for asked, selection in metric.seen}
        assert torch.equal(decision.selection.keep, seen[SelectionRule(cell.sparsity, scope, min_keep=2)])


def test_it_is_asked_once_a_budget(harness, metric) -> None:
    metric.seen.clear()
    decider = Decider(harness)
    for _ in range(2):
        for cell in grid(scale=("zscore", "raw"), scope=("kind", "global")):
            decider.decide(cell)
    assert sorted((asked.sparsity, asked.scope) for asked, _ in metric.seen) == [
        (sparsity, scope) for sparsity in (0.2, 0.4) for scope in ("global", "kind")
    ]


def test_what_it_says_of_layers_is_where_a_search_starts(harness) -> None:
    told = {}
    for name in ("wanda", "made-for-it"):
        start = next(cell for cell in grid(initializers=(name,), estimators=("rloo",)) if cell.kind == "start")
        keep, space = Decider(harness).decide(start).selection.keep, harness.space(start.granularity)
        told[name] = [float(keep[space.layer == layer].float().mean()) for layer in range(harness.layout.num_layers)]
    assert told["made-for-it"][0] < told["wanda"][0] - 0.2
    assert told["made-for-it"][-1] == 1.0


def test_a_metric_that_does_not_say_so_is_told_to(harness) -> None:
    with pytest.raises(PluginError, match='put "budget" into the needs of its Provider'):
        Decider(harness).decide(grid(baselines=("peeking",))[0])
