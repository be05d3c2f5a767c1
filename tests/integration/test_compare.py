"""`polyprune compare` from end to end on the bundled model: rows, forms, resuming, sharing a store, failing cells."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from commandline import Run, polyprune
from filelock import FileLock

from polyprune_core import MaskBatch, Provider, __version__, pipeline, report
from polyprune_core.models.sources import load_model
from polyprune_core.objective import Objective
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.report.load import load
from polyprune_core.results import Results, Row
from polyprune_core.space import MaskSpace

SMALL = ("-m", "tiny", "--limit", "4", "--seq-len", "32", "--eval-seq-len", "32")
SMALL += ("--calibration-samples", "4", "--batch-size", "2", "--steps", "2")
SMALL += (
    "--calibration",
    "learn.txt",
    "--evaluation",
    "test.txt",
    "--policy",
    "probabilities",
    "--masks-per-step",
    "2",
)
ESTIMATORS = ("reinforce", "rloo", "antithetic", "reinforce-released")
GRID = ("compare", *SMALL, "--estimators", ",".join(ESTIMATORS))
# One baseline and one search: enough where the number of rows does not matter.
FEW = ("compare", *SMALL, "--baselines", "random", "--estimators", "rloo")
NOT_THE_RESULT = {"search_seconds", "peak_memory_mb"}
IN_ANOTHER_PROCESS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
BROKEN = Source("broken-plugins", "1.2")


def grid(store: Path, *more: object, base: tuple[str, ...] = GRID) -> Run:
    return polyprune(*base, "-o", store, "--format", "json", *more)


def results_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows without what differs from run to run."""
    return [{name: value for name, value in row.items() if name not in NOT_THE_RESULT} for row in rows]


def cell_files(store: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (store / "cells").glob("*.json")}


pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A store and the run that filled it; a test that writes there works on a copy."""
    store = tmp_path_factory.mktemp("unbroken") / "store"
    run = grid(store)
    assert run.status == 0, run.err
    return store, run


@pytest.fixture
def copy(unbroken: tuple[Path, Run], tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(unbroken[0], tmp_path / "copy"))


@pytest.fixture
def record(unbroken: tuple[Path, Run]) -> dict[str, Any]:
    return json.loads(unbroken[1].out, parse_constant=pytest.fail)


@pytest.fixture
def cells_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is run and not read, by the name it has in a table."""
    names: list[str] = []
    run = pipeline._run

    def counted(harness: Any, cell: Any, blank: Row, *rest: Any) -> Row:
        names.append(report.label(blank))
        return run(harness, cell, blank, *rest)

    monkeypatch.setattr(pipeline, "_run", counted)
    return names


@pytest.fixture(scope="module")
def space() -> MaskSpace:
    """The heads and channels of the bundled model."""
    from polyprune_core.models.describe import describe

    layout, registry = describe(load_model("tiny").model), load_registry()
    groups = [registry.build("granularity", name).groups(layout) for name in ("head", "channel")]
    return MaskSpace(layout, [group for part in groups for group in part], "head+channel")


# Rows


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
    fields = {field.name: field.type for field in dataclasses.fields(Row)}
    for row in record["rows"]:
        assert list(row) == list(fields)
        assert re.fullmatch("[0-9a-f]{16}", row["id"])
        assert row["eval_tokens"] == 4 * 31
        assert all(source.startswith("polyprune ") for source in row["plugins"].values())
    assert len({row["id"] for row in record["rows"]}) == len(record["rows"])
    searched = record["rows"][-1]["plugins"]
    assert set(searched) == {"granularity head", "granularity channel", "initializer", "estimator"}
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
    assert [row["forward_tokens"] for row in record["rows"][:3]] == [0, 0, 0]


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


# Forms


def test_every_form_is_alone_on_stdout_and_names_every_row(unbroken, record) -> None:
    store, _ = unbroken
    names = [report.label(row) for row in Results.from_json(record).rows]
    for form in report.FORMATS:
        run = polyprune(*GRID, "-o", store, "--format", form)
        assert run.status == 0
        assert "reading" not in run.out
        assert "\x1b" not in run.out + run.err
        if form == "json":
            assert run.rows == record["rows"]
        if form == "csv":
            rows = list(csv.DictReader(io.StringIO(run.out)))
            assert [row["perplexity"] for row in rows] == [str(row["perplexity"]) for row in record["rows"]]
        if form == "markdown":
            found = [line.split("|")[1].strip() for line in run.out.splitlines() if line.startswith("|")]
            assert found == ["criterion", "---", *names]
        if form == "table":
            for name in names:
                assert len(re.findall(rf"^ *{re.escape(name)}  ", run.out, re.M)) == 1, name


def test_quiet_leaves_stderr_empty_and_the_results_as_they_were(unbroken) -> None:
    store, run = unbroken
    quiet = polyprune(*GRID, "-o", store, "--format", "json", "-q")
    assert (quiet.status, quiet.err) == (0, "")
    assert quiet.rows == run.rows


def test_a_configuration_file_asks_for_the_same_and_the_command_line_wins(unbroken, tmp_path, cells_run) -> None:
    store, run = unbroken
    config = tmp_path / "grid.toml"
    config.write_text(
        'calibration = "learn.txt"\nevaluation = "test.txt"\n'
        'model = "tiny"\nlimit = 4\nseq-len = 32\neval_seq_len = 32\ncalibration-samples = 4\nbatch-size = 2\n'
        'policy = "probabilities"\nmasks-per-step = 2\n'
        'steps = 99\nestimators = ["reinforce", "rloo", "antithetic", "reinforce-released"]\n'
    )
    again = polyprune("compare", "-C", config, "--steps", 2, "-o", store, "--format", "json")
    assert again.rows == run.rows
    assert cells_run == []


# Resuming


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
        ("--probabilities", "const", {"thinet → no search", "thinet → rloo"}),
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


KILLED = """
import os, signal
from polyprune_core.cli import main

replace, written = os.replace, []

def dying(source, target):
    if str(target).endswith(".json"):
        written.append(target)
    if len(written) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
main()
"""


def test_a_run_killed_in_the_middle_of_a_write_goes_on_to_the_same_rows(unbroken, tmp_path, cells_run) -> None:
    command = [sys.executable, "-c", KILLED, *GRID, "-o", str(tmp_path / "store")]
    killed = subprocess.run(command, env=os.environ | IN_ANOTHER_PROCESS, capture_output=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list((tmp_path / "store" / "cells").glob("[!.]*.json"))) == 5
    assert not (tmp_path / "store" / "results.json").exists()
    rest = grid(tmp_path / "store")
    assert rest.status == 0
    assert cells_run == ["thinet → no search", *(f"thinet → {name}" for name in ESTIMATORS)]
    assert results_of(rest.rows) == results_of(unbroken[1].rows)


KILLED_WITHIN = """
import os, signal
from polyprune_core import resume
from polyprune_core.cli import main
from polyprune_core.objective import Objective

resume.SECONDS_BETWEEN, resume.SHARE_OF_TIME = 0.0, 1.0
losses, calls = Objective.losses, []

def dying(self, masks, ids):
    calls.append(masks)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return losses(self, masks, ids)

Objective.losses = dying
main()
"""


def test_a_run_killed_within_a_search_goes_on_in_that_search_to_the_same_rows(tmp_path, cells_run, monkeypatch) -> None:
    asked = (*FEW[:-1], "reinforce", "--steps", "6", "-o")
    command = [sys.executable, "-c", KILLED_WITHIN, *asked, str(tmp_path / "store")]
    killed = subprocess.run(command, env=os.environ | IN_ANOTHER_PROCESS, capture_output=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
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


TWIN = """
import os, sys, time
from pathlib import Path
from polyprune_core import pipeline
from polyprune_core.cli import main

meeting, me = Path(sys.argv.pop(1)), sys.argv.pop(1)
open_harness, run = pipeline.open_harness, pipeline._run

def met(*arguments):
    harness = open_harness(*arguments)
    (meeting / f"{me}.here").touch()
    while len(list(meeting.glob("*.here"))) < 2:
        time.sleep(0.01)
    return harness

def noted(harness, cell, blank, *rest):
    with open(meeting / "ran", "a") as file:
        file.write(f"{blank.id} {me}\\n")
    time.sleep(0.05)
    return run(harness, cell, blank, *rest)

pipeline.open_harness, pipeline._run = met, noted
main()
"""


def test_two_processes_on_one_store_share_the_cells_and_agree(unbroken, tmp_path) -> None:
    meeting, store = tmp_path / "meeting", tmp_path / "store"
    meeting.mkdir()
    twins = [
        subprocess.Popen(
            [sys.executable, "-c", TWIN, str(meeting), name, *GRID, "-o", str(store), "--format", "json"],
            env=os.environ | IN_ANOTHER_PROCESS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    try:
        runs = [Run(None, *twin.communicate(timeout=240)) for twin in twins]
    finally:
        for twin in twins:
            twin.kill()
    assert [twin.returncode for twin in twins] == [0, 0], [run.err for run in runs]
    assert runs[0].rows == runs[1].rows
    assert results_of(runs[0].rows) == results_of(unbroken[1].rows)
    ran = [line.split()[0] for line in (meeting / "ran").read_text().splitlines()]
    assert sorted(ran) == sorted(row["id"] for row in runs[0].rows)


# Faults of the store


def refused(run: Run, *parts: object) -> None:
    """Checks for status 2 and one last line that says why, without a traceback and with nothing on stdout."""
    assert run.status == 2, run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    complaints = [line for line in run.err.splitlines() if line.startswith("polyprune: ")]
    assert complaints == run.err.splitlines()[-1:]
    for part in parts:
        assert str(part) in complaints[0]


@pytest.mark.parametrize(
    "content",
    ["", '{"row": {"id": "', "[]", '{"cell": 1}', '{"row": {"id": "x", "kind": "dense", "unknown": 1}}'],
    ids=["empty", "truncated", "a list", "another object", "an unknown field"],
)
def test_a_cell_file_that_is_not_ours_fails_its_own_cell_and_is_left_alone(copy, record, cells_run, content) -> None:
    path = copy / "cells" / f"{record['rows'][5]['id']}.json"
    path.write_text(content)
    run = grid(copy)
    assert run.status == 1
    assert [row for row in run.rows if row["status"] == "ok"] == [
        row for row in record["rows"] if row["id"] not in str(path)
    ]
    assert cells_run == []
    for part in (str(path), "Delete that file"):
        assert part in run.rows[5]["error"]
        assert part in run.err
    assert path.read_text() == content
    path.unlink()
    assert results_of(grid(copy).rows) == results_of(record["rows"])


@pytest.mark.parametrize("fault", ["another cell", "a word for a number", "a folder"])
def test_a_cell_file_that_only_looks_like_ours_is_named(copy, record, fault) -> None:
    path, other = (copy / "cells" / f"{record['rows'][index]['id']}.json" for index in (5, 2))
    if fault == "a folder":
        path.unlink()
        path.mkdir()
    else:
        word = re.sub(r'"nll": [\d.]+', '"nll": "low"', path.read_text())
        path.write_text(other.read_text() if fault == "another cell" else word)
    run = grid(copy)
    assert run.status == 1
    assert [row["status"] for row in run.rows].count("failed") == 1
    assert str(path) in run.rows[5]["error"]


FULL = """
import resource
from polyprune_core import pipeline
from polyprune_core.cli import main

open_harness = pipeline.open_harness

def full(*arguments):
    harness = open_harness(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    return harness

pipeline.open_harness = full
main()
"""


def test_on_a_full_disk_every_file_is_named_and_the_results_are_printed(unbroken, copy, record) -> None:
    kept = cell_files(copy)
    arguments = [*GRID, "--seeds", "0,1", "-o", str(copy), "--format", "json"]
    command = [sys.executable, "-c", FULL, *arguments]
    run = subprocess.run(
        command, env=os.environ | IN_ANOTHER_PROCESS, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    old = {row["id"] for row in record["rows"]}
    assert results_of([row for row in rows if row["id"] in old]) == results_of(record["rows"])
    warned = [line for line in run.stderr.splitlines() if line.startswith("warning: cannot write ")]
    assert len(warned) == len([row for row in rows if row["id"] not in old]) + 1
    for row in rows:
        assert any(row["id"] in line for line in warned) == (row["id"] not in old)
    assert str(copy / "results.json") in warned[-1]
    assert cell_files(copy) == kept
    assert not [path for path in copy.rglob("*.*") if path.name.startswith(".") and path.suffix != ".lock"]


@pytest.mark.parametrize("place", ["store", "store/cells", "above"])
def test_a_file_where_the_store_must_go_is_refused(tmp_path, place) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    store = tmp_path / "above" / "store" if place == "above" else tmp_path / "store"
    refused(grid(store), store, "--output")
    assert path.read_text() == "mine"


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be made in the folder; where we are root and could all the same, making anything anywhere fails."""
    folder.chmod(0o555)
    try:
        with contextlib.ExitStack() as patches:
            if os.access(folder, os.W_OK):
                refusal = PermissionError(errno.EACCES, "Permission denied")
                for target, name in ((os, "mkdir"), (tempfile, "mkstemp"), (FileLock, "acquire")):
                    patches.enter_context(mock.patch.object(target, name, side_effect=refusal))
            yield
    finally:
        folder.chmod(0o755)


def test_a_store_in_a_folder_that_cannot_be_written_is_refused(tmp_path) -> None:
    with read_only(tmp_path):
        refused(grid(tmp_path / "store"), tmp_path / "store", "--output")


def test_a_store_that_cannot_be_written_is_refused(tmp_path) -> None:
    (tmp_path / "cells").mkdir()
    with read_only(tmp_path / "cells"):
        refused(grid(tmp_path, base=FEW), tmp_path)


def test_a_finished_grid_in_a_store_that_cannot_be_written_is_read(copy, record) -> None:
    with read_only(copy / "cells"), read_only(copy):
        run = grid(copy)
    assert run.status == 0
    assert run.rows == record["rows"]
    assert str(copy / "results.json") in run.err


def test_what_a_killed_process_left_is_removed(copy, record) -> None:
    cell = record["rows"][5]["id"]
    half, late = copy / "cells" / f".{cell}.json.abc", copy / "cells" / f"{cell}.search.safetensors"
    late.write_text("written before the cell was")
    assert grid(copy).status == 0
    assert not late.exists()
    half.write_text("{")
    (copy / "cells" / f"{cell}.json").unlink()
    assert grid(copy).status == 0
    assert not half.exists()


# Warnings


def test_one_text_in_both_roles_is_warned_of_and_two_texts_are_not(tmp_path, unbroken) -> None:
    text = tmp_path / "same.txt"
    text.write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 200)
    run = grid(tmp_path / "store", "--calibration", text, "--evaluation", text, "--estimators", "none")
    assert run.status == 0
    warnings = [line for line in run.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "same.txt" in warnings[0]
    assert "warning" not in unbroken[1].err


# Cells that fail


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
    reason = failed_alone(grid(tmp_path, "--baselines", "faulty,random", base=FEW), "faulty", tmp_path)
    assert "'faulty'" in reason
    assert str(BROKEN) in reason


def test_searches_from_a_failing_initializer_fail_and_those_from_others_do_not(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["not finite"]))
    run = grid(tmp_path, "--initializers", "faulty,wanda", base=FEW)
    failed_alone(run, "faulty", tmp_path)
    assert [row["status"] for row in run.rows] == ["ok", "ok", "failed", "failed", "ok", "ok"]


GRADIENTS = {
    "too few": lambda policy, losses: (torch.zeros(3), None),
    "not finite": lambda policy, losses: (torch.full_like(policy.keep_prob, math.inf), None),
}


@pytest.mark.parametrize("fault", GRADIENTS)
def test_an_estimator_that_returns_what_it_must_not_fails_its_own_cell(installed, tmp_path, fault) -> None:
    installed("estimator", "faulty", Estimator(GRADIENTS[fault]))
    reason = failed_alone(grid(tmp_path, "--estimators", "faulty,rloo", base=FEW), "faulty", tmp_path)
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
    failed_alone(grid(tmp_path, "--estimators", "faulty,rloo", base=FEW), "faulty", tmp_path)


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
    reason = failed_alone(grid(tmp_path, option, f"faulty,{others}", base=FEW), "faulty", tmp_path)
    assert "faulty" in reason
    assert str(BROKEN) in reason
    assert len(reason.splitlines()) == 1


def test_verbose_shows_where_in_the_plugin_it_was(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(explode))
    run = grid(tmp_path, "--baselines", "faulty", "-v", base=FEW)
    assert run.status == 1
    assert "Traceback" in run.err
    assert re.search(r"test_compare\.py., line \d+, in explode", run.err)
    assert "and more of it" in run.err


def test_an_ordinary_exception_of_a_granularity_is_one_line_that_names_it(installed, tmp_path) -> None:
    installed("granularity", "faulty", mock.Mock(groups=explode))
    refused(grid(tmp_path, "--granularity", "faulty", base=FEW), "faulty", BROKEN)


def test_the_other_cells_and_the_model_are_as_if_the_failing_ones_were_not_there(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    mixed = grid(tmp_path / "mixed", "--baselines", "faulty,random", base=FEW)
    alone = grid(tmp_path / "alone", base=FEW)
    assert results_of([row for row in mixed.rows if row["initializer"] != "faulty"]) == results_of(alone.rows)


def test_a_failed_cell_is_run_again_and_the_others_are_not(installed, tmp_path, cells_run) -> None:
    asked = ("--baselines", "faulty,random")
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    assert grid(tmp_path, *asked, base=FEW).status == 1
    cells_run.clear()
    installed("initializer", "faulty", Initializer(lambda space: torch.arange(len(space)).float()))
    mended = grid(tmp_path, *asked, base=FEW)
    assert mended.status == 0
    assert cells_run == ["faulty"]


def test_a_failed_cell_is_a_row_of_the_table_too(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    run = polyprune(*FEW, "-o", tmp_path, "--baselines", "faulty")
    assert run.status == 1
    assert re.search(r"^ *faulty .*failed", run.out, re.M)


def test_quiet_still_says_why_a_cell_failed(installed, tmp_path) -> None:
    installed("initializer", "faulty", Initializer(SCORES["too few"]))
    run = polyprune(*FEW, "-o", tmp_path, "--baselines", "faulty", "-q")
    assert run.status == 1
    assert "'faulty'" in run.out + run.err
