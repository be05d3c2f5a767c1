"""The pooling of a metric alone that is left open: which is taken, by which text, at what cost, and who is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from commandline import polyprune

from polyprune_core import ConfigError, Provider
from polyprune_core.config.cell import Metric, Pruned
from polyprune_core.config.grid import cells
from polyprune_core.config.held_back import held_back_count
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.report.naming import criterion, label, told_apart
from polyprune_core.results.cell_file import path_of, read_details
from polyprune_core.results.row import row_from_json
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.opening import open_harness
from polyprune_core.utils.progress import Reporter

SAMPLES, LENGTH = 4, 32
HELD = held_back_count(SAMPLES)
POOLINGS = [(scope, scale) for scope in ("kind", "global", "layer") for scale in ("raw", "zscore", "per-parameter")]
SMALL = ("-m", "tiny", "--limit", "4", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4")
SMALL += ("--calibration", "learn.txt", "--evaluation", "test.txt", "--sparsity", "0.3")


@dataclass(frozen=True)
class Seeing:
    """Wanda, made anew for every budget; remembers the text it was shown and the scope it was asked for."""

    seen: list[tuple[str, torch.Tensor]] = field(default_factory=list)

    def score(self, model: Any, space: Any, calibration: Any) -> torch.Tensor:
        self.seen.append((calibration.budget.scope, calibration.windows))
        return calibration.score("wanda", space, "zscore")


METRIC = Seeing()


def opened(folder: Path, evaluation: str = "test.txt") -> Harness:
    config = Comparison(
        model="tiny",
        calibration=str(folder / "learn.txt"),
        evaluation=str(folder / evaluation),
        calibration_samples=SAMPLES,
        repair_samples=SAMPLES,
        seq_len=LENGTH,
        eval_seq_len=LENGTH,
        limit=4,
    )
    needs = frozenset({"calibration", "budget"})
    item = Registered("initializer", Provider("seeing", "made for a test", lambda: METRIC, needs), Source("test", "1"))
    return open_harness(config, Registry([*load_registry().all(), item], ()), Reporter())


@pytest.fixture(scope="module")
def harness(short_texts: Path) -> Iterator[Harness]:
    harness = opened(short_texts)
    with harness.compactor:
        yield harness


def asked(metric: str = "wanda", **coordinates: Any) -> Metric:
    given = {"scope": "auto", "scale": "auto"} | coordinates
    return Metric(granularity="head+channel", initializer=metric, sparsity=0.3, **given)


def loss_by_hand(harness: Harness, cell: Pruned) -> float:
    """The loss of the smaller model, built as an exporter would, on the windows held back."""
    model, windows = Decider(harness).decide(cell).pruned.build(), harness.windows.held_back(cell.seed)
    with torch.inference_mode():
        logits = model(windows).logits.float()
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), windows[:, 1:].flatten()))


@pytest.mark.parametrize("metric", ["magnitude", "wanda"])
def test_the_pooling_whose_selection_loses_least_is_taken(harness, metric) -> None:
    fixed = [asked(metric, scope=scope, scale=scale) for scope, scale in POOLINGS]
    losses = [loss_by_hand(harness, cell) for cell in fixed]
    best = fixed[losses.index(min(losses))]
    decision = Decider(harness).decide(asked(metric))
    assert list(decision.losses) == [f"{scope}, {scale}" for scope, scale in POOLINGS]
    assert list(decision.losses.values()) == pytest.approx(losses, abs=0.02)  # bfloat16, other kernels
    assert torch.equal(decision.selection.keep, Decider(harness).decide(best).selection.keep)


@pytest.mark.parametrize("part", [{"scope": "layer"}, {"scale": "zscore"}])
def test_what_is_given_stays(harness, part) -> None:
    decision = Decider(harness).decide(asked(**part))
    tried = [f"{a}, {b}" for a, b in POOLINGS if {"scope": a, "scale": b}.items() >= part.items()]
    assert list(decision.losses) == tried
    assert decision.cell.model_dump().items() >= part.items()


def test_the_windows_are_those_that_the_metric_does_not_look_at(harness) -> None:
    for seed in (0, 1):
        METRIC.seen.clear()
        Decider(harness).decide(asked("seeing", seed=seed))
        held, pool = (
            {tuple(ids) for ids in w.tolist()} for w in (harness.windows.held_back(seed), harness.windows.calibration)
        )
        looked = {tuple(ids) for _, windows in METRIC.seen for ids in windows.tolist()}
        assert (len(looked), len(held)) == (SAMPLES, HELD)
        assert not looked & held
        assert held <= pool


def test_scores_made_for_a_budget_are_asked_once_a_scope_and_not_scaled(harness) -> None:
    METRIC.seen.clear()
    decision = Decider(harness).decide(asked("seeing"))
    assert [scope for scope, _ in METRIC.seen] == ["kind", "global", "layer"]
    assert list(decision.losses) == ["kind, raw", "global, raw", "layer, raw"]


def test_what_choosing_costs_is_counted_in_every_row_that_shares_the_choice(harness) -> None:
    decider = Decider(harness)
    fixed = [decider.decide(asked(scope=scope, scale=scale)) for scope, scale in POOLINGS]
    different = {tuple(each.selection.keep.tolist()) for each in fixed}
    chosen, repaired = (decider.decide(asked(repair=repair)) for repair in ("none", "bias"))
    extra = len(different) * HELD * LENGTH
    assert chosen.cost.forward_tokens == fixed[0].cost.forward_tokens + extra
    assert chosen.cost.forward_passes == fixed[0].cost.forward_passes + len(different)
    assert chosen.cost.seconds > fixed[0].cost.seconds
    assert repaired.cost.forward_tokens == chosen.cost.forward_tokens + SAMPLES * LENGTH
    assert torch.equal(repaired.selection.keep, chosen.selection.keep)


def test_the_evaluation_text_has_no_say(harness, short_texts, tmp_path) -> None:
    for name in ("learn.txt", "test.txt"):
        (tmp_path / name).write_bytes((short_texts / name).read_bytes())
    (tmp_path / "poison.txt").write_text("zq 7# " * 4000, "utf-8")
    poisoned = opened(tmp_path, "poison.txt")
    with poisoned.compactor:
        other = Decider(poisoned).decide(asked())
    decision = Decider(harness).decide(asked())
    assert (other.cell, other.losses) == (decision.cell, decision.losses)


def test_a_text_that_leaves_nothing_to_hold_back_is_told_of_before_anything_runs(short_texts) -> None:
    registry = load_registry()
    text = {"calibration": str(short_texts / "learn.txt"), "evaluation": str(short_texts / "test.txt"), "seq_len": 32}
    settled = Comparison(model="tiny", scope="kind", scale="raw", **text)
    every = len(open_harness(settled, registry, Reporter()).windows.calibration)
    with pytest.raises(ConfigError, match=f"has {every} windows of 32 tokens, and a metric looks at all of them"):
        open_harness(Comparison(model="tiny", calibration_samples=every, **text), registry, Reporter())
    searched = {"scope": "kind", "scale": "raw", "estimators": "rloo", "baselines": (), "calibration_samples": every}
    with pytest.raises(ConfigError, match="which --scope auto, --scale auto and --early-stopping need"):
        open_harness(Comparison(model="tiny", early_stopping=1, **searched, **text), registry, Reporter())


def test_searches_keep_the_scope_of_their_policy() -> None:
    grid = cells(Comparison(estimators="rloo", scope="auto").for_policy("adam", 0.1, "global"))
    assert {(cell.kind, cell.scope) for cell in grid[1:]} == {
        ("baseline", "auto"),
        ("start", "global"),
        ("search", "global"),
    }


@pytest.mark.usefixtures("two_short_texts")
def test_a_row_says_what_was_asked_and_what_was_chosen(tmp_path) -> None:
    run = polyprune(
        "compare", *SMALL, "--baselines", "wanda", "--scope", "auto,kind", "-o", tmp_path, "--format", "json"
    )
    rows = [row_from_json(row) for row in run.rows[1:]]
    varied = told_apart([row.cell for row in rows])
    for row, scope in zip(rows, ("auto", "kind"), strict=True):
        assert (row.cell.scope, row.cell.scale) == (scope, "auto")
        losses = read_details(path_of(tmp_path / "cells", row.id)).poolings
        taken = min(losses, key=losses.__getitem__)
        assert ", ".join(row.pooling.values()) == taken
        assert label(row) == f"wanda ({row.pooling['scope'] + ', ' if scope == 'auto' else ''}{row.scale_chosen})"
    assert label(rows[0], varied) == f"wanda (auto: {rows[0].scope_chosen}, {rows[0].scale_chosen})"
    assert label(rows[1], varied) == f"wanda (kind, {rows[1].scale_chosen})"
    plan = json.loads(
        polyprune(
            "compare", *SMALL, "--baselines", "wanda", "-o", tmp_path / "new", "--dry-run", "--format", "json"
        ).out
    )
    metric = SAMPLES * LENGTH
    assert plan["cells"][1]["forward_tokens"] == metric + len(POOLINGS) * HELD * LENGTH
    assert metric < rows[0].forward_tokens <= plan["cells"][1]["forward_tokens"]


@pytest.mark.usefixtures("two_short_texts")
def test_masks_are_selected_anew_in_the_pooling_that_was_chosen(tmp_path) -> None:
    made = polyprune("prune", *SMALL, "--initializer", "wanda", "--exporter", "masks", "-o", tmp_path / "masks")
    assert made.status == 0, made.err
    masks = MaskFile.read(tmp_path / "masks")
    assert (masks.recipe["scope"], masks.recipe["scale"]) != ("auto", "auto")
    assert masks.rule().scope == masks.recipe["scope"]
    again = polyprune(
        "prune", "--from-masks", tmp_path / "masks", *SMALL[2:-1], "0.5", "--exporter", "masks", "-o", tmp_path / "more"
    )
    assert again.status == 0, again.err
    assert MaskFile.read(tmp_path / "more").rule().scope == masks.rule().scope


def test_a_chart_has_one_line_a_criterion_whatever_was_chosen_at_each_sparsity() -> None:
    columns = {"kind": "baseline", "scope": "auto", "scale": "auto", "granularity": "head", "initializer": "wanda"}
    rows = [
        row_from_json(columns | {"id": scope, "sparsity": sparsity, "seed": 0, "scope_chosen": scope})
        for scope, sparsity in (("kind", 0.2), ("global", 0.4))
    ]
    assert [label(row) for row in rows] == ["wanda (kind)", "wanda (global)"]
    assert {criterion(row) for row in rows} == {"wanda"}
