"""Repaired rows: what each bears of the passes that it shares, and the dense model that was trained alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from grids import SMALL, grid, results_of

BASE = ("compare", *SMALL, "--baselines", "thinet", "--sparsity", "0.3")
TRAINED = "distil:tokens=256"
# The metric and the repair look at 4 windows of 32 tokens each, the same ones.
SAME, OTHER = ("--repair-samples", "4"), ("--repair-samples", "8")


def rows(store: Path, *more: object) -> list[dict[str, Any]]:
    run = grid(store, *more, base=BASE)
    assert run.status == 0, run.err
    return results_of(json.loads(run.out)["rows"])


@pytest.fixture
def texts(short_texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(short_texts)


@pytest.mark.usefixtures("texts")
def test_a_row_costs_in_a_grid_what_it_costs_alone(tmp_path) -> None:
    together = rows(tmp_path / "grid", "--repair", "none,bias,least-squares", *OTHER)
    alone = rows(tmp_path / "alone", "--repair", "least-squares", *OTHER)
    assert [row["forward_tokens"] for row in together] == [0, 128, 128 + 256, 128 + 256]
    assert together[-1] == alone[-1]


@pytest.mark.usefixtures("texts")
def test_a_metric_and_a_repair_of_the_same_sample_pay_for_one_pass(tmp_path) -> None:
    found = rows(tmp_path / "same", "--repair", "none,least-squares", *SAME)
    assert [row["forward_tokens"] for row in found] == [0, 128, 128]


@pytest.mark.usefixtures("texts")
def test_beside_a_trained_row_stands_the_dense_model_trained_alike(tmp_path) -> None:
    store = tmp_path / "trained"
    run = grid(store, "--repair", f"none,{TRAINED}", "--seeds", "0,1", *OTHER, base=BASE)
    assert run.status == 0, run.err
    record = json.loads(run.out)
    found = [(row["kind"], row["repair"], row["seed"]) for row in record["rows"]]
    pruned = [("baseline", repair, seed) for repair in ("none", TRAINED) for seed in (0, 1)]
    assert found == [("dense", None, None), ("dense", TRAINED, 0), ("dense", TRAINED, 1), *pruned]
    dense, trained = record["rows"][0], record["rows"][1]
    assert (trained["parameters_kept"], trained["sparsity_achieved"]) == (dense["parameters_kept"], 0)
    assert (trained["backward_passes"], trained["forward_tokens"]) == (2, 2 * 256)
    assert 0 <= trained["kl_to_dense"] < record["rows"][-1]["kl_to_dense"]
    table = grid(store, "--repair", f"none,{TRAINED}", "--seeds", "0,1", *OTHER, "--format", "markdown", base=BASE).out
    assert f"| dense + {TRAINED} ∇ |" in table
    assert table.index("| dense |") < table.index("| dense + ")
