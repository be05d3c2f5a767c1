"""What is finished is not run again, what decides a result is; killed runs go on, and two share a store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from elsewhere import Fork, killed_before
from forks import forks
from grids import ESTIMATORS, FEW, GRID, cell_files, grid, results_of

from polyprune_core.evaluation.losses import Objective
from polyprune_core.models.sources import load_model
from polyprune_core.runs import workplace
from polyprune_core.search import checkpoint

pytestmark = pytest.mark.usefixtures("two_short_texts")


def test_finished_cells_are_read_and_not_run_again(unbroken, copy, cells_run) -> None:
    before = cell_files(copy)
    again = grid(copy)
    assert again.status == 0
    assert cells_run == []
    assert cell_files(copy) == before
    assert again.rows == unbroken[1].rows


def test_only_what_is_new_in_a_larger_grid_is_run(unbroken, copy, cells_run) -> None:
    run = grid(copy, "--seeds", "0,7", "--estimators", "rloo", "--baselines", "wanda")
    assert cells_run == ["wanda", "thinet → no search", "thinet → rloo"]
    old = {row["id"]: row for row in unbroken[1].rows}
    assert [row["seed"] for row in run.rows if row["id"] not in old] == [7, 7, 7]
    assert [row for row in run.rows if row["id"] in old] == [old[row["id"]] for row in run.rows if row["id"] in old]


@pytest.mark.parametrize(
    ("option", "value"), [("--steps", 3), ("--learning-rate", 0.1), ("--precondition", "none"), ("--masks-per-step", 4)]
)
def test_a_change_of_the_search_runs_searches_again_and_nothing_else(copy, cells_run, option, value) -> None:
    assert grid(copy, option, value, base=FEW).status == 0
    assert cells_run == ["thinet → rloo"]


@pytest.mark.parametrize(
    ("option", "value", "again"),
    [
        ("--limit", 3, {"dense", "random", "thinet → no search", "thinet → rloo"}),
        ("--dtype", "float16", {"dense", "random", "thinet → no search", "thinet → rloo"}),
        ("--evaluation", "learn.txt", {"dense", "random", "thinet → no search", "thinet → rloo"}),
        ("--calibration", "test.txt", {"random", "thinet → no search", "thinet → rloo"}),
        ("--calibration-samples", 3, {"random", "thinet → no search", "thinet → rloo"}),
        ("--policy", "probabilities:start=const", {"thinet → no search", "thinet → rloo"}),
    ],
)
def test_whatever_decides_a_result_makes_its_cell_run_again_and_no_other(copy, cells_run, option, value, again) -> None:
    assert grid(copy, option, value, base=FEW).status == 0
    assert set(cells_run) == again


def test_names_and_ways_to_ask_for_the_same_decide_nothing(copy, cells_run, tmp_path, record) -> None:
    model = load_model("tiny")
    same_model = shutil.copytree(model.path, tmp_path / "elsewhere")
    for name in ("learn.txt", "test.txt"):
        shutil.copy(name, tmp_path / f"renamed-{name}")
    run = grid(
        copy, "-m", same_model, "--dtype", record["model"]["dtype"], "--device", "cpu", "--forward-tokens", 2 * 128,
        "--calibration", tmp_path / "renamed-learn.txt", "--evaluation", tmp_path / "renamed-test.txt",
    )  # fmt: skip
    assert run.status == 0
    assert cells_run == []


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_the_same_weights_with_another_configuration_or_tokenizer_are_another_model(
    copy, cells_run, tmp_path, file
) -> None:
    folder = Path(shutil.copytree(load_model("tiny").path, tmp_path / "elsewhere"))
    content = json.loads((folder / file).read_text("utf-8"))
    if file == "config.json":
        content["rope_parameters"]["rope_theta"] = 500.0
    else:
        content["normalizer"] = {"type": "Lowercase"}
    (folder / file).write_text(json.dumps(content), "utf-8")
    assert grid(copy, "-m", folder, "--estimators", "none", "--baselines", "none").status == 0
    assert cells_run == ["dense"]


@forks
def test_a_run_killed_in_the_middle_of_a_write_goes_on_to_the_same_rows(unbroken, tmp_path, cells_run) -> None:
    def prepare() -> None:
        killed_before(os, "replace", 6, lambda source, target: str(target).endswith(".json"))

    assert Fork(prepare, *GRID, "-o", tmp_path / "store").finished().status == -signal.SIGKILL
    assert len(list((tmp_path / "store" / "cells").glob("[!.]*.json"))) == 5
    assert not (tmp_path / "store" / "results.json").exists()
    rest = grid(tmp_path / "store")
    assert rest.status == 0
    assert cells_run == ["thinet → no search", *(f"thinet → {name}" for name in ESTIMATORS)]
    assert results_of(rest.rows) == results_of(unbroken[1].rows)


@forks
def test_a_run_killed_within_a_search_goes_on_in_that_search_to_the_same_rows(tmp_path, cells_run, monkeypatch) -> None:
    asked = (*FEW[:-1], "reinforce", "--steps", "6", "-o")

    def prepare() -> None:
        checkpoint.SECONDS_BETWEEN, checkpoint.SHARE_OF_TIME = 0.0, 1.0
        # Steps alone: poolings are tried mask by mask.
        killed_before(Objective, "losses", 4, lambda self, masks, ids: len(masks) > 1)

    assert Fork(prepare, *asked, tmp_path / "store").finished().status == -signal.SIGKILL
    (left,) = (tmp_path / "store" / "cells").glob("*.search.safetensors")
    calls = []
    losses = Objective.losses
    monkeypatch.setattr(Objective, "losses", lambda self, *given: calls.append(1) or losses(self, *given))
    rest = grid(tmp_path / "store", base=asked[:-1])
    assert (rest.status, cells_run, len(calls)) == (0, ["thinet → reinforce"], 3)
    assert f"goes on from {left}" in rest.err
    assert not left.exists()
    assert results_of(rest.rows) == results_of(grid(tmp_path / "unbroken", base=asked[:-1]).rows)
    traces = [next(store.glob("cells/*.trace.jsonl")) for store in (tmp_path / "store", tmp_path / "unbroken")]
    one, other = ([json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()] for path in traces)
    assert one == other


def test_a_broken_checkpoint_is_told_and_its_cell_starts_over(tmp_path, unbroken) -> None:
    search = next(row["id"] for row in unbroken[1].rows if row["estimator"] == "rloo")
    path = tmp_path / "cells" / f"{search}.search.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"not ours")
    run = grid(tmp_path)
    assert run.status == 0
    assert [line for line in run.err.splitlines() if line.startswith("warning: ")] == [
        line for line in run.err.splitlines() if str(path) in line
    ]
    assert str(path) in run.err
    assert results_of(run.rows) == results_of(unbroken[1].rows)
    assert not path.exists()


@forks
def test_two_processes_on_one_store_share_the_cells_and_agree(unbroken, tmp_path) -> None:
    meeting, store = tmp_path / "meeting", tmp_path / "store"
    meeting.mkdir()

    def prepare() -> None:
        open_harness, run = workplace.open_harness, workplace.run_cell

        def met(*given: Any) -> Any:
            harness = open_harness(*given)
            (meeting / f"{os.getpid()}.here").touch()
            while len(list(meeting.glob("*.here"))) < 2:
                time.sleep(0.01)
            return harness

        def noted(decider: Any, blank: Any, *rest: Any) -> Any:
            with (meeting / "ran").open("a") as file:
                file.write(f"{blank.id}\n")
            time.sleep(0.05)
            return run(decider, blank, *rest)

        workplace.open_harness, workplace.run_cell = met, noted

    twins = [Fork(prepare, *GRID, "-o", store, "--format", "json") for _ in range(2)]
    runs = [twin.finished() for twin in twins]
    assert [run.status for run in runs] == [0, 0]
    assert runs[0].rows == runs[1].rows
    assert results_of(runs[0].rows) == results_of(unbroken[1].rows)
    ran = (meeting / "ran").read_text().splitlines()
    assert sorted(ran) == sorted(row["id"] for row in runs[0].rows)
