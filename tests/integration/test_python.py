"""The commands as functions: what they return, what they leave on disk, and that the command line says the same."""

from __future__ import annotations

import dataclasses
import inspect
import io
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from commandline import polyprune

import polyprune_core
from polyprune_core import PolypruneError, compare, evaluate, load_results, prune
from polyprune_core.cli import cli
from polyprune_core.utils import updating_line

FEW: dict[str, Any] = {
    "model": "tiny",
    "calibration": "learn.txt",
    "evaluation": "test.txt",
    "limit": 4,
    "seq_len": 32,
    "eval_seq_len": 32,
    "calibration_samples": 4,
    "scope": "kind",
    "scale": "raw",
}
GRID = FEW | {"baselines": ["random", "wanda"], "sparsity": [0.2, 0.3], "seeds": range(2)}
# Options of the commands that are about streams and files of settings.
OF_THE_SHELL = {"config", "quiet", "verbose", "form", "dry_run"}

pytestmark = pytest.mark.usefixtures("two_short_texts")


@pytest.fixture(scope="module")
def results(two_short_texts) -> polyprune_core.ComparisonResults:
    return compare(**GRID, quiet=True)


@pytest.mark.parametrize("name", ["compare", "prune", "evaluate"])
def test_the_keywords_are_the_options_of_the_command(name) -> None:
    there = {parameter.name for parameter in cli.commands[name].params} - OF_THE_SHELL
    keywords = inspect.signature(getattr(polyprune_core, name)).parameters
    assert keywords.keys() - {"quiet"} == there


def test_the_functions_are_imported_without_anything_heavy() -> None:
    program = (
        "import sys; from polyprune_core import compare, prune, evaluate, load_results; "
        "sys.exit(str({'torch', 'transformers', 'numpy', 'scipy', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == "set()\n"


def test_compare_gives_the_numbers_of_the_command_line(results) -> None:
    run = polyprune(
        *("compare", "-m", "tiny", "--calibration", "learn.txt", "--evaluation", "test.txt", "--limit", 4),
        *("--seq-len", 32, "--eval-seq-len", 32, "--calibration-samples", 4, "--baselines", "random,wanda"),
        *("--scope", "kind", "--scale", "raw"),
        *("-s", "0.2,0.3", "--seeds", "0,1", "-o", "by-command", "--format", "json", "-q"),
    )
    ours = [(row.id, row.perplexity) for row in results.rows]
    assert ours == [(row["id"], row["perplexity"]) for row in run.rows]
    assert len(ours) == 1 + 2 * 2 * 2


def test_nothing_is_kept_without_an_output(tmp_path, monkeypatch) -> None:
    texts = {name: str(Path(FEW[name]).resolve()) for name in ("calibration", "evaluation")}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    compare(**FEW | texts, baselines="random", quiet=True)
    prune(**FEW | texts, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_data_frame_has_a_line_a_row_in_the_columns_of_the_csv(results) -> None:
    from polyprune_core.report import to_csv

    table = results.to_pandas()
    assert list(table.columns) == to_csv(results).splitlines()[0].split(",")
    assert list(table.id) == [row.id for row in results.rows]
    assert list(table.perplexity) == [row.perplexity for row in results.rows]


def test_a_library_that_is_not_there_is_told_with_what_to_install(results) -> None:
    with mock.patch.dict(sys.modules, {"pandas": None, "matplotlib": None}):
        with pytest.raises(PolypruneError, match="pip install pandas"):
            results.to_pandas()
        with pytest.raises(PolypruneError, match=r"pip install 'polyprune\[plot\]'"):
            results.plot()


def test_best_is_the_lowest_mean_over_seeds_of_what_is_asked_for(results) -> None:
    means = {s.row.cell: s.perplexity.mean for s in results.summaries() if s.row.cell.kind != "dense"}
    for sparsity in (0.2, 0.3):
        found = results.best(sparsity=sparsity)
        assert found.perplexity.mean == min(mean for cell, mean in means.items() if cell.sparsity == sparsity)
    assert results.best(initializer="random", sparsity=[0.2, 0.3]).row.cell.initializer == "random"
    assert results.best().perplexity.mean == min(means.values())
    for coordinates, said in (({"sparsity": 0.4}, "0.4"), ({"sparsty": 0.2}, "Did you mean 'sparsity'")):
        with pytest.raises(PolypruneError, match=said):
            results.best(**coordinates)


def test_the_chart_has_a_line_a_criterion_through_the_means_of_the_table(results) -> None:
    pytest.importorskip("matplotlib")
    axes = results.plot()
    drawn = dict(zip(axes.get_legend_handles_labels()[1], axes.get_legend_handles_labels()[0], strict=True))
    assert drawn.keys() == {"dense", "random", "wanda"}
    for name in ("random", "wanda"):
        x, y = drawn[name].lines[0].get_data()
        chosen = [s for s in results.summaries() if s.row.cell.initializer == name]
        assert list(x) == [0.2, 0.3]
        assert list(y) == pytest.approx([torch.tensor(s.log_perplexity.mean).double().exp().item() for s in chosen])
    assert results.plot(axes) is axes


def test_a_notebook_and_a_shell_get_the_table(results) -> None:
    html = results._repr_html_()
    for said in ("wanda", "<table", "perplexity", "Mean ± sd over n seeds."):
        assert said in html
    assert "wanda" in str(results) == repr(results)
    hostile = dataclasses.replace(results, model=results.model | {"name": "<script>alert(1)</script>"})
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;script&gt;" in hostile._repr_html_()


@pytest.mark.parametrize("repair", ["none", "bias"])
def test_a_row_gives_its_model_back_and_prune_makes_the_same_one(repair) -> None:
    asked = FEW | {"sparsity": 0.3, "repair": repair, "quiet": True}
    results = compare(**asked, baselines="wanda")
    row = results.rows[1]
    again = results.pruned(row)
    made = prune(**asked, initializer="wanda")
    theirs = made.model.state_dict()
    assert all(torch.equal(weights, theirs[name]) for name, weights in again.model.state_dict().items())
    assert again.sparsity == made.sparsity == row.sparsity_achieved
    assert again.evaluation.perplexity == made.evaluation.perplexity == row.perplexity
    assert again.dense.perplexity == made.dense.perplexity
    assert (again.cost.forward_tokens, made.written) == (row.forward_tokens, None)
    assert repr(made) == repr(again)


def test_a_row_without_a_model_is_refused(results) -> None:
    with pytest.raises(PolypruneError, match="dense"):
        results.pruned(results.rows[0])
    with pytest.raises(PolypruneError, match="no row named"):
        results.pruned("nothing")
    with pytest.raises(PolypruneError, match="does not hold what the cell kept"):
        results.of(results.from_json(results.to_json())).pruned(results.rows[1])


@pytest.mark.usefixtures("runtime_here")
def test_a_pruned_model_is_exported_and_evaluated() -> None:
    made = prune(**FEW, initializer="random", sparsity=0.3, quiet=True)
    report = made.export("huggingface", "exported", verify=True)
    assert (report.path, report.parameters) == (Path("exported").resolve(), made.model.num_parameters())
    found = evaluate("exported", evaluation="test.txt", eval_seq_len=32, limit=4, quiet=True)
    assert found.model.evaluations[0].perplexity == pytest.approx(made.evaluation.perplexity, rel=1e-2)
    assert "perplexity, 32 tokens" in str(found)
    assert "<td>" in found._repr_html_()
    with pytest.raises(PolypruneError, match="not empty"):
        made.export("huggingface", "exported")


def test_prune_writes_where_it_is_told_to_and_reads_it_back() -> None:
    made = prune(**FEW, exporter="masks", output="masks", quiet=True)
    assert Path("masks/polyprune.json").is_file()
    assert made.written.reloaded[0].perplexity == pytest.approx(made.evaluation.perplexity, rel=1e-2)
    with pytest.raises(PolypruneError, match="give output"):
        prune(**FEW, exporter="masks")


def test_stored_results_are_loaded_as_the_same_object_one_comparison_at_a_time(results) -> None:
    compare(**GRID, output="first", quiet=True)
    compare(**GRID | {"limit": 3}, output="second", quiet=True)
    found = load_results("first")
    assert [(row.id, row.perplexity) for row in found.rows] == [(row.id, row.perplexity) for row in results.rows]
    assert found.pruned(found.best()).sparsity == results.best().row.sparsity_achieved
    with pytest.raises(PolypruneError, match=r"2 comparisons; choose one with comparison=INDEX: 0: tiny on"):
        load_results("first", "second")
    assert load_results("first", Path("second"), comparison=1).texts["evaluation"]["windows"] == 3
    with pytest.raises(PolypruneError, match="no results store given"):
        load_results()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsty": 0.3}, "Did you mean 'sparsity'"),
        ({"sparsity": "much"}, "--sparsity"),
        ({"baselines": ["wnda"]}, "Did you mean 'wanda'"),
        ({"report_to": "tensorboard"}, "output|not installed"),
    ],
)
def test_a_wrong_request_is_an_exception_that_says_what_to_do(options, said) -> None:
    with pytest.raises(PolypruneError, match=said):
        compare(**FEW | options)


def test_a_cell_that_fails_is_a_row_and_a_warning_of_the_line_that_called() -> None:
    broken = mock.patch("polyprune_core.runs.decision.Decider.decide", side_effect=PolypruneError("it went wrong"))
    with broken, pytest.warns(UserWarning, match="random.*it went wrong") as caught:
        found = compare(**FEW, baselines="random")
    assert [row.status for row in found.rows] == ["ok", "failed"]
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


class Notebook(io.StringIO):
    """A stream as a notebook has it: no terminal, and yet a line can be written over."""

    __module__ = "ipykernel.iostream"


def test_progress_is_one_line_that_is_gone_in_the_end() -> None:
    with mock.patch.object(sys, "stderr", Notebook()) as stream, mock.patch.object(updating_line, "SECONDS_BETWEEN", 0):
        compare(**FEW, baselines=["random"], estimators="rloo", steps=2)
    lines = stream.getvalue().split("\r")
    assert "\n" not in stream.getvalue()
    assert any("1 of 4 cells; " in line for line in lines)
    assert any("thinet → rloo, sparsity 0.2, seed 0: 2 of 2, loss" in line for line in lines)
    assert max(map(len, lines)) <= updating_line.NOTEBOOK_WIDTH
    assert (lines[-2].strip(), lines[-1]) == ("", "")


@pytest.mark.parametrize(("stream", "quiet"), [(Notebook, True), (io.StringIO, False)])
def test_nothing_is_drawn_when_quiet_or_in_a_pipe(stream, quiet) -> None:
    with mock.patch.object(sys, "stderr", stream()) as found, warnings.catch_warnings(action="error"):
        prune(**FEW, quiet=quiet)
    assert found.getvalue() == ""
