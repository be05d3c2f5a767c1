"""`polyprune compare --dry-run`: what the grid would do, without doing any of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import Run, polyprune

from polyprune_core.cli import dryrun

SMALL = ("-m", "tiny", "--limit", "4", "--seq-len", "32", "--eval-seq-len", "32", "--calibration-samples", "4")
SMALL += ("--batch-size", "2", "--steps", "2", "--calibration", "learn.txt", "--evaluation", "test.txt")
SMALL += ("--scope", "kind", "--scale", "zscore")
GRID = ("compare", *SMALL, "--estimators", "rloo,antithetic", "--baselines", "random,llm-pruner")


pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A store and the rows that are in it."""
    store = tmp_path_factory.mktemp("finished") / "store"
    run = polyprune(*GRID, "-o", store, "--format", "json")
    assert run.status == 0, run.err
    return store, run.rows


@pytest.fixture
def copy(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def dry(*more: object, base: tuple[str, ...] = GRID) -> Run:
    return polyprune(*base, "--dry-run", *more)


def planned(*more: object, base: tuple[str, ...] = GRID) -> dict[str, Any]:
    run = dry(*more, "--format", "json", base=base)
    assert (run.status, run.err) == (0, "")
    return json.loads(run.out, parse_constant=pytest.fail)


def states(plan: dict[str, Any]) -> list[str]:
    return [cell["state"] for cell in plan["cells"]]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_cells_and_their_tokens_are_those_of_the_run(finished, tmp_path) -> None:
    plan, rows = planned("-o", tmp_path / "new"), finished[1]
    keys = ("kind", "initializer", "estimator", "seed", "sparsity", "scope", "scale", "granularity")
    assert [[cell["row"][key] for key in keys] for cell in plan["cells"]] == [
        [row[key] for key in keys] for row in rows
    ]
    assert [cell["forward_tokens"] for cell in plan["cells"]] == [row["forward_tokens"] for row in rows]
    assert plan["forward_tokens"] == sum(row["forward_tokens"] for row in rows)
    assert set(states(plan)) == {"to do"}


def test_metrics_that_run_text_more_than_once_are_counted(tmp_path) -> None:
    narrow = ("--baselines", "bonsai:masks=4:windows=3,race:of=thinet+wanda:windows=2")
    whole = ("--baselines", "sleb:windows=3:until=0.5", "--granularity", "layer")
    for more in (narrow, whole):
        grid = ("compare", *SMALL, *more)
        plan = planned("-o", tmp_path / "store", base=grid)
        rows = polyprune(*grid, "-o", tmp_path / "store", "--format", "json").rows
        for cell, row in zip(plan["cells"][1:], rows[1:], strict=True):
            assert 4 * 32 < row["forward_tokens"] <= cell["forward_tokens"]  # more than the text once
            if "race" not in row["initializer"]:  # selections that are the same run once
                assert row["forward_tokens"] == cell["forward_tokens"]


def test_what_is_left_counts_shared_scores_once_and_every_evaluation(tmp_path) -> None:
    plan = planned("-o", tmp_path / "new")
    metric, search, evaluation = 4 * 32, 2 * 8 * 2 * 32, 4 * 32
    expected = [0, 0, 3 * metric, metric, search, search]
    assert [cell["work"] for cell in plan["cells"]] == [tokens + evaluation for tokens in expected]
    assert plan["work"] == sum(expected) + 6 * evaluation
    assert plan["seconds"] == pytest.approx(plan["work"] / plan["speed"]["value"])


def test_what_a_repair_reads_is_counted_and_its_search_is_made_once(tmp_path) -> None:
    grid = (
        "compare",
        *SMALL,
        "--estimators",
        "rloo",
        "--baselines",
        "random",
        "--repair",
        "none,bias",
        "--repair-samples",
        "6",
    )
    plan = planned("-o", tmp_path / "store", base=grid)
    rows = polyprune(*grid, "-o", tmp_path / "store", "--format", "json").rows
    assert [cell["forward_tokens"] for cell in plan["cells"]] == [row["forward_tokens"] for row in rows]
    sample, mend, search, evaluation = 4 * 32, 6 * 32, 2 * 8 * 2 * 32, 4 * 32
    by_kind: dict[str, list[int]] = {}
    for cell in plan["cells"]:
        by_kind.setdefault(cell["row"]["kind"], []).append(cell["work"] - evaluation)
    assert by_kind == {"dense": [0], "baseline": [0, mend], "start": [sample, mend], "search": [search, mend]}


def test_nothing_is_written(tmp_path, copy) -> None:
    before = files(copy)
    dry("-o", copy, "--seeds", "0,1")
    dry("-o", tmp_path / "new")
    assert files(copy) == before
    assert not (tmp_path / "new").exists()


def test_finished_cells_are_known_and_cost_no_more(finished) -> None:
    plan = planned("-o", finished[0], "--seeds", "0,1")
    for cell in plan["cells"]:
        old = cell["row"]["seed"] in (0, None)
        assert cell["state"] == ("finished" if old else "to do")
        assert (cell["work"] == 0) == old
    assert plan["speed"]["source"] == "measured in 2 finished searches"
    rows = [row for row in finished[1] if row["kind"] == "search"]
    tokens, seconds = (sum(row[name] for row in rows) for name in ("forward_tokens", "search_seconds"))
    assert plan["speed"]["value"] == pytest.approx(tokens / seconds)
    assert plan["memory_mb"]["value"] == max(row["peak_memory_mb"] for row in finished[1])


def test_a_search_begun_and_a_broken_file_are_told(copy, finished) -> None:
    begun, broken = (copy / "cells" / f"{finished[1][index]['id']}.json" for index in (-1, 1))
    begun.unlink()
    begun.with_suffix(".search.safetensors").write_bytes(b"any")
    broken.write_text("{")
    run = dry("-o", copy)
    assert run.status == 0
    assert states(planned("-o", copy)) == ["finished", "broken", *["finished"] * 3, "started"]
    assert str(broken) in run.out
    assert re.search("^cells +6: 4 finished, 1 started, 1 broken$", run.out, re.M)


def test_earlier_results_of_the_same_model_tell_the_speed_of_another_grid(finished) -> None:
    plan = planned("-o", finished[0], "--limit", "3")
    assert set(states(plan)) == {"to do"}
    assert plan["speed"]["source"] == "measured in 2 finished searches"
    assert planned("-o", finished[0], "--dtype", "float16")["speed"]["source"].startswith("assumed")


def test_a_results_file_that_is_broken_is_no_measurement(copy) -> None:
    (copy / "results.json").write_text('{"model": 3}')
    assert planned("-o", copy, "--limit", "3")["speed"]["source"].startswith("assumed")


def test_without_measurements_time_and_memory_come_from_stated_assumptions(tmp_path) -> None:
    run = dry("-o", tmp_path / "new")
    assert re.search(r"^time +about .* at 10,000 tokens a second \(assumed: 3e11 operations", run.out, re.M)
    assert re.search(r"^memory +about \d+ MB \(assumed: 9 times the weights in bfloat16", run.out, re.M)


def test_a_model_that_is_not_here_is_not_fetched(tmp_path, monkeypatch, finished) -> None:
    monkeypatch.setenv("POLYPRUNE_CACHE", str(tmp_path / "cache"))
    plan = planned("-o", tmp_path / "new", "-m", "smollm2-135m", "--limit", "8")
    assert plan["speed"]["value"] == pytest.approx(3e11 / 2 / 134_515_008)
    assert plan["memory_mb"]["value"] > 269
    plan = planned("-o", finished[0], "-m", "smollm2-135m")
    assert set(states(plan)) == {"not known"}
    assert "smollm2-135m is not on this machine" in plan["notes"][0]
    plan = planned("-o", tmp_path / "new", "-m", "nobody/no-such-model")
    assert plan["seconds"] is None
    assert not (tmp_path / "cache").exists()


def test_a_distant_text_is_not_fetched(finished) -> None:
    plan = planned("-o", finished[0], "--evaluation", "someone/data")
    assert set(states(plan)) == {"not known"}
    assert "someone/data" in plan["notes"][0]


@pytest.mark.parametrize(
    ("option", "value", "near"),
    [("--estimators", "rlo", "rloo"), ("-m", "tinny", "tiny"), ("--granularity", "chanel", "channel")],
)
def test_a_name_that_is_wrong_is_refused_with_the_nearest(tmp_path, option, value, near) -> None:
    run = dry("-o", tmp_path, option, value)
    assert (run.status, run.out) == (2, "")
    assert f"Did you mean '{near}'?" in run.err


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_a_form_that_a_plan_does_not_have_is_refused(tmp_path, form) -> None:
    run = dry("-o", tmp_path, "--format", form)
    assert (run.status, run.out) == (2, "")
    assert "table or json" in run.err


def test_what_cells_leave_is_found_without_weights_and_is_what_they_leave(finished, tmp_path) -> None:
    plan = planned("-o", tmp_path)
    rows = {tuple(row[name] for name in ("kind", "initializer", "estimator")): row for row in finished[1]}
    whole = next(row["parameters_kept"] for row in finished[1] if row["kind"] == "dense")
    assert plan["parameters"] == whole
    largest_unit = 4 * 128 * 128  # a KV head of tiny with its queries
    for cell in plan["cells"]:
        row = rows[tuple(cell["row"][name] for name in ("kind", "initializer", "estimator"))]
        assert abs(cell["parameters"] - row["parameters_kept"]) <= 2 * largest_unit
    kept = 1 - plan["cells"][1]["row"]["sparsity"]
    assert plan["cells"][1]["parameters"] <= whole - (1 - kept) * plan["prunable"]["head+channel"]


def test_a_budget_that_cannot_be_met_is_refused_as_the_run_would(tmp_path) -> None:
    run = dry("-o", tmp_path, "--sparsity", "0.999")
    assert (run.status, run.out) == (2, "")
    assert "0.999" in run.err
    assert not list(tmp_path.iterdir())


LONG = ("--estimators", "reinforce-released", "--policy", "probabilities")
LONG += ("--granularity", "head+channel,channel", "--scope", "kind,layer")


def test_the_table_fits_80_columns_with_every_name_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dryrun, "PIPED_WIDTH", 80)
    lines = dry("-o", tmp_path, *LONG, "--sparsity", "0.25", "--seeds", "0,1").out.splitlines()
    rows = [line for line in lines if line.rstrip().endswith("  to do")]
    assert len(rows) == 1 + 2 * 2 * 2 * (2 + 2)
    assert max(map(len, lines[: 2 + len(rows)])) <= 80
    for name in ("thinet → reinforce-released (channel, layer)", "random (head+channel, kind)"):
        assert sum(name in line for line in rows) == 2


WATCHED = """
import sys
from polyprune_core.cli import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
heavy = {"torch", "transformers", "scipy", "datasets", "tokenizers"}
sys.exit(f"loaded: {sorted(heavy & sys.modules.keys())}")
"""


def test_no_heavy_library_is_loaded_where_neither_model_nor_store_is_here(tmp_path) -> None:
    distant = (*GRID, "-m", "somebody/model-of-theirs")
    command = [sys.executable, "-c", WATCHED, *distant, "--dry-run", "-o", str(tmp_path / "new")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
    assert run.stderr == "loaded: []\n"
    assert "6 to do" in run.stdout
