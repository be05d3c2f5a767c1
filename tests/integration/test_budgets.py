"""Budgets from the command line to the written model: met, shown beside what was asked, refused before any work."""

from __future__ import annotations

import json

import pytest
from commandline import polyprune

from polyprune_core.evaluation.latency import Seconds
from polyprune_core.models.sources import load_model
from polyprune_core.report.document import FORMS, SHOWN
from polyprune_core.runs import harness

SMALL = ("-m", "tiny", "--limit", "2", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4")
SMALL += ("--batch-size", "2", "--steps", "2", "--calibration", "learn.txt", "--evaluation", "test.txt")
FEW = ("compare", *SMALL, "--baselines", "wanda", "--scope", "kind", "--scale", "raw", "--estimators", "rloo")
FEW += ("--format", "json")


pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture
def a_machine(monkeypatch) -> None:
    """Stands in for the clock: time goes with the parameters, the embedding's included."""

    def take_turns(models, load):
        counts = [sum(p.numel() for p in model.parameters()) for model in models]
        return [[Seconds(count, count / 10)] * 2 for count in counts]

    monkeypatch.setattr(harness, "take_turns", take_turns)


def test_every_row_of_a_budget_meets_it_whatever_decided(tmp_path) -> None:
    run = polyprune(*FEW, "--budget", "kv-cache=0.7,bytes=2200kB", "-o", tmp_path)
    assert run.status == 0, run.err
    rows = [row for row in run.rows if row["kind"] != "dense"]
    assert [row["budget"] for row in rows] == ["kv-cache=0.7"] * 3 + ["bytes=2.2MB"] * 3
    itemsize = load_model("tiny").model.dtype.itemsize
    for row in rows:
        assert row["sparsity"] is None
        if row["budget"] == "kv-cache=0.7":
            assert row["budget_achieved"] == pytest.approx(2 / 3)  # of 24 heads 16.8 would do
        else:
            assert row["budget_achieved"] == row["parameters_kept"] * itemsize <= 2.2e6
    assert "sparsity None" not in run.err
    summary = json.loads(run.out)["summary"]
    assert [one["versus"] is not None for one in summary if one["kind"] == "search"] == [True, True]
    for form in FORMS:
        for show in SHOWN if form != "json" else ("results",):
            told = polyprune("report", tmp_path, "--format", form, "--show", show)
            assert (told.status, told.err) == (0, "")
            assert "wanda" in told.out


def test_a_budget_in_parameters_reads_the_cells_of_the_sparsity_it_is(tmp_path) -> None:
    first = polyprune(*FEW, "--sparsity", "0.3", "-o", tmp_path)
    before = sorted(path.name for path in (tmp_path / "cells").iterdir())
    again = polyprune(*FEW, "--budget", "parameters=0.7", "-o", tmp_path)
    assert again.rows == first.rows
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == before


def test_latency_is_measured_again_for_every_row(tmp_path, a_machine) -> None:
    run = polyprune(*FEW, "--budget", "latency=0.8", "-o", tmp_path)
    assert run.status == 0, run.err
    dense, *rows = run.rows
    for row in rows:
        assert row["budget_achieved"] == pytest.approx(row["parameters_kept"] / dense["parameters_kept"])
        assert row["budget_achieved"] == pytest.approx(0.8, abs=0.03)
    assert len({row["parameters_kept"] for row in rows}) == 1


def test_the_model_that_is_written_meets_the_budget(tmp_path) -> None:
    run = polyprune("prune", *SMALL, "--budget", "bytes=2MB", "-o", tmp_path / "new")
    assert run.status == 0, run.err
    record = json.loads((tmp_path / "new" / "polyprune.json").read_text("utf-8"))
    model = load_model(str(tmp_path / "new"), trust_remote_code=True).model
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert record["budget_achieved"] == held <= 2e6
    assert f"bytes=2MB asked, {held / 1e6:.4g}MB achieved" in run.out


def test_a_budget_also_stands_in_a_configuration_file(tmp_path) -> None:
    (tmp_path / "c.toml").write_text('budget = ["kv-cache=0.5"]\nbaselines = "random"\n')
    run = polyprune("compare", *SMALL, "-C", tmp_path / "c.toml", "--format", "json", "-o", tmp_path / "runs")
    assert [row["budget"] for row in run.rows] == [None, "kv-cache=0.5"]


@pytest.mark.parametrize(
    ("budget", "parts"),
    [
        ("kv-cache=0.01", ["cannot be met", "kv-cache=0.25 or more"]),
        ("bytes=10kB", ["cannot be met", "or more"]),
        ("bytes=1GB", ["removes nothing"]),
        ("latency=0.01", ["cannot be met", "is left at least"]),
        ("parameters=0.01", ["sparsity 0.99 cannot be met"]),
        ("gold=1", ["no budget currency named 'gold'"]),
        ("0.7", ["budget '0.7' has no currency", "such as parameters=0.7"]),
    ],
)
@pytest.mark.parametrize("command", ["compare", "prune"])
def test_what_cannot_be_met_is_refused_before_any_work(tmp_path, a_machine, command, budget, parts) -> None:
    run = polyprune(command, *SMALL, "--budget", budget, "-o", tmp_path / "new")
    assert run.status == 2
    assert run.out == ""
    complaint = run.err.splitlines()[-1]
    assert complaint.startswith("polyprune: ")
    for part in parts:
        assert part in complaint
    assert not list(tmp_path.rglob("*.json"))
