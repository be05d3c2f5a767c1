"""The rows of `polyprune compare`: which they are, what is in them, and what lies beside each."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from grids import ESTIMATORS, FEW, grid

from polyprune_core import __version__
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.report.load import load
from polyprune_core.results.row import columns_of_row

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def space() -> MaskSpace:
    """The heads and channels of the bundled model."""
    from polyprune_core.models.describe import describe

    layout, registry = describe(load_model("tiny").model), load_registry()
    groups = [registry.build("granularity", name).groups(layout) for name in ("head", "channel")]
    return MaskSpace(layout, [group for part in groups for group in part], "head+channel")


def test_the_rows_are_dense_then_metrics_alone_then_the_start_then_its_searches(record) -> None:
    assert [(row["kind"], row["initializer"], row["estimator"]) for row in record["rows"]] == [
        ("dense", None, None),
        ("baseline", "random", None),
        ("baseline", "magnitude", None),
        ("baseline", "wanda", None),
        ("baseline", "thinet", None),
        ("start", "thinet", None),
        *(("search", "thinet", name) for name in ESTIMATORS),
    ]
    assert {row["status"] for row in record["rows"]} == {"ok"}


def test_the_json_has_every_field_that_is_promised(record) -> None:
    assert list(record) == ["schema", "polyprune", "environment", "config", "model", "texts", "rows", "summary"]
    assert (record["schema"], record["polyprune"]) == (1, __version__)
    assert {"python", "torch", "transformers", "cpu", "gpu", "threads"} <= set(record["environment"])
    assert {"name", "sha256", "parameters", "prunable_parameters"} <= set(record["model"])
    assert record["config"]["estimators"] == list(ESTIMATORS)
    assert record["config"]["steps"] == 2
    assert set(record["texts"]) == {"calibration", "evaluation"}
    assert record["texts"]["evaluation"]["windows"] == 4
    assert record["texts"]["evaluation"]["tokens_per_window"] == 32
    for row in record["rows"]:
        assert tuple(row) == columns_of_row()
        assert re.fullmatch("[0-9a-f]{16}", row["id"])
        assert row["eval_tokens"] == 4 * 31
        assert all(source.startswith("polyprune ") for source in row["plugins"].values())
    assert len({row["id"] for row in record["rows"]}) == len(record["rows"])
    searched = record["rows"][-1]["plugins"]
    assert set(searched) == {
        "granularity head",
        "granularity channel",
        "initializer",
        "policy",
        "estimator",
        "repair",
    }
    assert [summary["n"] for summary in record["summary"]] == [1] * 10
    assert {"granularity", "initializer", "estimator", "sparsity", "n", "perplexity_mean"} <= set(record["summary"][0])
    assert [bool(s["versus"]) for s in record["summary"]] == [False] * 6 + [True] * 4
    assert {"row", "ratio", "ci95", "p"} <= set(record["summary"][-1]["versus"])


def test_the_store_holds_what_was_printed_and_it_reads_back(unbroken, record) -> None:
    assert json.loads((unbroken[0] / "results.json").read_text("utf-8")) == record
    assert load([unbroken[0]]).comparisons[0].results.to_json() == record


def test_beside_every_cell_lie_its_windows_and_what_it_kept(unbroken, record, space) -> None:
    (found,) = load([unbroken[0]]).comparisons
    total = record["model"]["prunable_parameters"]["head+channel"]
    dense = record["model"]["parameters"]
    for row in record["rows"]:
        details = found.details[row["id"]]
        assert details.window_nll.shape == (4,)
        assert details.window_nll.mean() == pytest.approx(row["nll"], rel=1e-6)
        assert details.run == {name: record[name] for name in ("polyprune", "environment", "config", "model", "texts")}
        if row["kind"] == "dense":
            assert details.keep is None
            continue
        kept = float(space.cost[torch.from_numpy(details.keep)].sum())
        assert kept == row["parameters_kept"] - (dense - total)
        assert [(group.kind, group.layer, group.count) for group in details.groups] == [
            (group.kind, group.layer, group.count) for group in space.groups
        ]
        for kind in space.kind.unique():
            scores, kept = details.scores[space.kind == kind], details.keep[space.kind == kind]
            assert np.median(scores[kept]) > np.median(scores[~kept])


def test_a_search_is_compared_on_the_same_windows_as_its_start(record) -> None:
    for summary in record["summary"][6:]:
        assert summary["versus"]["evaluation"]["windows"] == 4


def test_a_broken_file_beside_a_cell_is_warned_of_and_costs_its_noise_only(copy, record, cells_run) -> None:
    broken = copy / "cells" / f"{record['rows'][-1]['id']}.safetensors"
    broken.write_bytes(b"{}")
    run = grid(copy)
    assert (run.status, cells_run) == (0, [])
    assert broken.name in run.err
    assert run.rows == record["rows"]
    noise = [s["versus"] and s["versus"]["evaluation"] for s in json.loads(run.out)["summary"]]
    assert noise[-1] is None
    assert noise[-2] is not None


def test_the_sparsity_achieved_is_the_one_asked_for_to_one_unit_of_each_kind(record, space) -> None:
    total = record["model"]["prunable_parameters"]["head+channel"]
    assert total == space.total_cost
    one_of_each = sum(int(space.cost[space.kind == kind].max()) for kind in space.kind.unique())
    for row in record["rows"][1:]:
        assert row["sparsity"] == 0.2
        removed = record["model"]["parameters"] - row["parameters_kept"]
        assert 0 <= removed - 0.2 * total < one_of_each
        assert row["sparsity_achieved"] == pytest.approx(removed / total, rel=1e-12)
        assert row["parameters_kept_fraction"] == row["parameters_kept"] / record["model"]["parameters"]
    dense = record["rows"][0]
    assert (dense["sparsity_achieved"], dense["parameters_kept"]) == (0.0, record["model"]["parameters"])


def test_every_estimator_spends_the_same_and_all_of_it_is_counted(record) -> None:
    start, *searches = record["rows"][5:]
    for row in searches:
        assert row["forward_tokens"] - start["forward_tokens"] == 2 * 2 * 2 * 32  # steps, masks, sequences, tokens
        assert row["forward_passes"] - start["forward_passes"] == 2 * 2
        assert row["backward_passes"] == row["non_finite_losses"] == 0
    assert start["forward_tokens"] == 4 * 32  # thinet looks at each calibration window once
    dense, *unread = [row["forward_tokens"] for row in record["rows"][:3]]
    assert dense == 0
    for tokens in unread:  # random and magnitude read no text: up to nine poolings are run on 8 windows held back
        assert tokens in range(8 * 32, 9 * 8 * 32 + 1, 8 * 32)


def test_perplexity_is_the_exponential_of_the_loss_and_agreement_is_with_the_dense_model(record) -> None:
    dense, *others = record["rows"]
    for row in record["rows"]:
        assert row["perplexity"] == pytest.approx(math.exp(row["nll"]), rel=1e-12)
    assert (dense["kl_to_dense"], dense["top1_agreement"]) == (None, None)
    for row in others:
        assert row["kl_to_dense"] > 0
        assert 0 < row["top1_agreement"] < 1
        assert row["perplexity"] > dense["perplexity"]


def test_a_budget_in_tokens_is_spent_in_whole_steps_and_not_overspent(tmp_path) -> None:
    run = grid(tmp_path, "--forward-tokens", 3 * 128 + 127, base=(*FEW[:-1], "rloo,antithetic"))
    start, *searches = run.rows[2:]
    assert [row["forward_tokens"] - start["forward_tokens"] for row in searches] == [3 * 128] * 2


def test_seeds_are_rows_of_their_own_and_one_line_of_the_summary(tmp_path) -> None:
    record = json.loads(grid(tmp_path, "--seeds", "3,1", base=FEW).out)
    assert [row["seed"] for row in record["rows"]] == [None, 3, 1, 3, 1, 3, 1]
    assert [(summary["kind"], summary["n"]) for summary in record["summary"]] == [
        ("dense", 1),
        ("baseline", 2),
        ("start", 2),
        ("search", 2),
    ]
    random = [row["perplexity"] for row in record["rows"][1:3]]
    assert random[0] != random[1]
    assert record["summary"][1]["perplexity_mean"] == pytest.approx(sum(random) / 2, rel=1e-12)
    assert record["summary"][3]["versus"]["ci95"] is not None
