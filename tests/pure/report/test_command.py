"""`polyprune report` as it is typed, and the commands that it says make a number again."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import jsonschema
import pytest
from click.testing import CliRunner
from kinds import fill_with_every_kind
from stores import fill, run

from polyprune_core.cli import cli
from polyprune_core.config.parsing import parse
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError
from polyprune_core.plugins.registry import load_registry
from polyprune_core.report.arrange import FILTERS, KEYS, SORTS
from polyprune_core.report.commands import command, command_of
from polyprune_core.report.document import FORMS, SHOWN
from polyprune_core.report.load import load
from polyprune_core.results.schema import published
from polyprune_core.runs.preflight import settled

PROGRAM = """
import sys
from polyprune_core.cli import main
try:
    main()
except SystemExit as stop:
    status = stop.code
else:
    status = 0
print(sorted({"torch", "transformers", "datasets"} & sys.modules.keys()), status, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("store") / "copied")


def report(*words: object) -> Any:
    return CliRunner().invoke(cli, ["report", *map(str, words)], catch_exceptions=False)


@pytest.mark.parametrize("form", ["table", "html"])
def test_no_form_loads_torch_or_transformers(store, form) -> None:
    words = ["report", str(store), "--format", form]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stderr == "[] 0\n"
    assert "wanda → rloo" in run.stdout
    assert "\x1b" not in run.stdout


def test_a_fault_is_one_line_and_status_2(tmp_path) -> None:
    words = ["report", str(tmp_path / "nothing")]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout == ""
    assert run.stderr.splitlines()[0].startswith(f"polyprune: {tmp_path / 'nothing'} is neither")
    assert run.stderr.splitlines()[1:] == ["[] 2"]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_gets_what_stdout_would(store, tmp_path, form) -> None:
    shown = report(store, "--format", form)
    written = report(store, "--format", form, "-o", tmp_path / "file")
    assert (shown.exit_code, written.exit_code, written.output) == (0, 0, "")
    assert (tmp_path / "file").read_text("utf-8") == shown.output


def test_a_file_that_cannot_be_written_is_a_fault_and_leaves_nothing(store, tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        report(store, "-o", tmp_path / "no folder" / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["results.json", "cells/dense.json"])
def test_a_report_never_takes_the_place_of_what_it_reads(store, place) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*.*")}
    with pytest.raises(ConfigError, match="which is read"):
        report(store, "--format", "csv", "--output", store / place)
    assert {path: path.read_bytes() for path in store.rglob("*.*")} == before


def test_the_json_is_valid_and_is_what_compare_wrote(store) -> None:
    record = json.loads(report(store, "--format", "json", "--sort", "none", "--group-by", "none").output)
    jsonschema.validate(record, json.loads(published()))
    assert record["rows"] == json.loads((store / "results.json").read_text("utf-8"))["rows"]


def test_the_schema_is_printed_without_a_store() -> None:
    assert report("--schema").output == published()


@pytest.mark.parametrize("words", [(), ("STORE", "--filter", "estimator"), ("STORE", "--filter", "estimator=")])
def test_what_is_missing_is_asked_for(store, words) -> None:
    with pytest.raises(ConfigError, match=r"name the folder|KEY=VALUE"):
        report(*(store if word == "STORE" else word for word in words))


def test_filters_of_one_key_add_up(store) -> None:
    output = report(store, "--filter", "estimator=rloo", "--filter", "estimator=reinforce,none").output
    assert output.count("wanda → rloo") == output.count("wanda → reinforce") == 2
    assert "no search" in output


def test_old_cells_are_told_of_on_stderr(tmp_path) -> None:
    run = report(fill(tmp_path / "old", details=False))
    assert "hold no window losses" in run.stderr
    assert "hold no window losses" not in run.stdout


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--format", FORMS),
        ("--show", SHOWN),
        ("--sort", (*SORTS, "none")),
        ("--group-by", (*KEYS, "none")),
        ("--filter", FILTERS),
    ],
)
def test_the_help_names_all_there_is_to_choose_from(option, names) -> None:
    text = CliRunner().invoke(cli, ["report", "--help"], env={"COLUMNS": "300"}).output
    line = next(line for line in text.splitlines() if line.startswith(f"│ {option} "))
    assert [name for name in names if name not in line] == []


def test_a_name_that_is_not_to_choose_from_is_refused_with_those_that_are(store) -> None:
    for option in ("--format", "--show", "--sort", "--group-by"):
        with pytest.raises(click.BadParameter, match=r"'colour' is not one of '\w+', '\w+'"):
            cli.main(["report", str(store), option, "colour"], standalone_mode=False)


def test_the_names_to_choose_from_are_looked_up_where_they_are_needed_only() -> None:
    program = "import sys, polyprune_core.cli; print({'pydantic', 'polyprune_core.report'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "set()\n"


# Commands that make a number again


def asked(text: str) -> Comparison:
    """What `polyprune compare` would be asked by this command line."""
    seen: list[Comparison] = []
    words = shlex.split(text)
    assert words[:2] == ["polyprune", "compare"]

    def compare(request: Comparison, *_: object) -> None:
        seen.append(request)
        raise ConfigError("far enough")

    with mock.patch.dict(sys.modules, {"polyprune_core.runs.compare": SimpleNamespace(compare=compare)}):
        result = CliRunner().invoke(cli, words[1:])
    assert str(result.exception) == "far enough", result.output
    return seen[0]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"seeds": [3, 1], "scope": ["kind", "layer"], "baselines": [], "estimators": ["rloo"], "limit": 7},
        {"model": "my models/a 'b'", "trust_remote_code": True, "learning_rate": 3e-5, "forward_tokens": 5000},
        {"baselines": ["llm-pruner:taylor=vector"], "granularity": ["layer"], "sparsity": [0.25]},
    ],
)
def test_the_command_of_a_comparison_asks_for_that_comparison(config) -> None:
    wanted = settled(parse(Comparison, config), load_registry())
    assert asked(command(wanted.model_dump(mode="json"))) == wanted


def test_the_command_of_a_row_asks_for_its_cells(store) -> None:
    results = load([store]).comparisons[0].results
    for summary in results.summaries():
        request = asked(command_of(summary, results.config))
        row = summary.row
        if row.cell.kind == "dense":
            assert (request.baselines, request.estimators) == ((), ())
            continue
        assert (request.sparsity, request.seeds, request.scope) == (
            (row.cell.sparsity,),
            summary.seeds,
            (row.cell.scope,),
        )
        criteria = request.baselines if row.cell.kind == "baseline" else request.initializers
        assert criteria == (row.cell.initializer,)
        if row.cell.kind == "search":
            assert request.estimators == (row.cell.estimator,)
        assert request.model == run()["config"]["model"]


def test_the_command_of_a_row_asks_for_its_budget_and_its_repair(tmp_path) -> None:
    results = load([fill_with_every_kind(tmp_path)]).comparisons[0].results
    for summary in results.summaries():
        text, cell = command_of(summary, results.config), summary.row.cell
        assert ("--repair bias" in text) == (cell.repair == "bias")
        if cell.kind != "dense":
            assert asked(text.replace(" --repair bias", "")).targets == (cell.target,)
