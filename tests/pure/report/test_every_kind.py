"""Every kind of cell in every form of a report: its row is there with what was asked, what came of it, its numbers."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from kinds import BUDGETS, COLUMNS, Kind, fill_with_every_kind, kinds

from polyprune_core.cli import cli
from polyprune_core.errors import ConfigError
from polyprune_core.report import number
from polyprune_core.report.document import FORMS, SHOWN
from polyprune_core.report.latex import escape as escape_latex
from polyprune_core.report.markdown import escape as escape_markdown
from polyprune_core.results.statistics import overlap

PUBLISHED = Path(__file__).resolve().parents[3] / "benchmarks" / "results"
EVERY = kinds()
PAIRS = [(form, show) for form in FORMS for show in SHOWN if form != "json" or show == "results"]
Report = Callable[..., str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Returns what the command prints of the store of every kind; each command runs once."""
    store = fill_with_every_kind(tmp_path_factory.mktemp("every") / "store")

    @cache
    def printed(*words: str) -> str:
        run = CliRunner().invoke(cli, ["report", str(store), *words], catch_exceptions=False)
        assert run.exit_code == 0, run.output
        return run.stdout

    return printed


def spelt(form: str, text: str) -> str:
    """Returns a text as a form writes it."""
    spell = {"markdown": escape_markdown, "latex": escape_latex, "html": html.escape}.get(form, str)
    return spell(text)


def lines(form: str, text: str) -> list[list[str]]:
    """Returns the cells of every line of every table, without what makes them bold."""
    if form == "csv":
        return [line[1:] for line in csv.reader(io.StringIO(text)) if line]
    if form == "html":
        return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", text, re.S)]
    text = re.sub(r"\*\*|\\textbf\{([^}]*)\}", r"\1", text)
    if form == "table":
        return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    signs = {"markdown": "|", "latex": "&"}
    return [[cell.strip() for cell in line.strip("| \\").split(signs[form])] for line in text.splitlines()]


def check_sheet(text: str, form: str, show: str, kind: Kind) -> None:
    """Fails unless one line of the sheet has the row's name and all that it says there."""
    cell, called = kind.row.cell, spelt(form, kind.called)
    found = [line for line in lines(form, text) if line and re.fullmatch(rf"(\d+ )?{re.escape(called)}", line[0])]
    asked = "" if cell.target is None else spelt(form, cell.asked)
    if show in ("kept", "agreement"):
        if kind.details is None or cell.kind == "dense":
            assert form == "html" or not found
            return
        assert f"head+channel, {asked}" in " ".join(text.split())
    if show == "kept":
        assert [called, *kind.kept("head")] in found
        assert [called, *kind.kept("channel")] in found
        return
    if show == "results":
        wanted = [kind.got, kind.perplexity]
    elif show == "cost":
        wanted = [kind.got.partition(" → ")[0], f"{kind.row.forward_tokens:,}"]
    else:
        wanted = [f"{overlap(kind.details.keep, partner(kind).details.keep):.2f}"]
    assert any(all(spelt(form, each) in line for each in wanted if each) for line in found), (wanted, found)


def partner(kind: Kind) -> Kind:
    """Returns another row of the same budget."""
    return next(
        other
        for other in EVERY.values()
        if other.row.cell.target == kind.row.cell.target and other.details and other is not kind
    )


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(("form", "show"), PAIRS)
def test_a_row_is_in_the_report_with_its_own_values(report: Report, form: str, show: str, name: str) -> None:
    text, kind = report("--format", form, "--show", show, "--group-by", "none"), EVERY[name]
    if form not in ("json", "csv") or show != "results":
        check_sheet(text, form, show, kind)
        return
    rows = json.loads(text)["rows"] if form == "json" else csv.DictReader(io.StringIO(text))
    (found,) = [row for row in rows if row["id"] == name]
    for column in ("sparsity", "budget", "budget_achieved", "repair", "perplexity", "status", "error"):
        value = kind.row.to_json()[column]
        assert found[column] == (value if form == "json" else "" if value is None else str(value)), column


def test_no_two_rows_of_the_matrix_say_the_same() -> None:
    every = list(EVERY.values())
    assert len({kind.perplexity for kind in every}) == len({kind.row.forward_tokens for kind in every}) == len(every)
    pruned = [(*kind.kept("head"), *kind.kept("channel")) for kind in every if kind.kept("head")]
    assert len(set(pruned)) == len(pruned) == len(every) - 3


@pytest.mark.parametrize("show", [show for show in SHOWN if show != "results"])
def test_json_names_the_forms_that_have_the_other_tables(report: Report, show: str) -> None:
    with pytest.raises(ConfigError, match=f"--show {show} with table, markdown, latex or csv"):
        report("--format", "json", "--show", show)


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("json", "csv")])
@pytest.mark.parametrize("group", ["sparsity", "budget"])
def test_rows_of_which_the_same_was_asked_stand_under_it_the_sparsities_first(report, form, group) -> None:
    text = report("--format", form, "--group-by", group)
    titles = [EVERY[name].row.cell.asked for name in ("metric", "bytes", "kv-cache", "latency", "parameters")]
    places = [text.index(spelt(form, title), text.index("criterion")) for title in titles]
    assert places == sorted(places)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("form", ["table", "csv", "json", "html"])
def test_a_budget_can_be_filtered_by(report: Report, form: str, budget: str) -> None:
    text = report("--format", form, "--filter", f"budget={EVERY[budget].row.cell.budget}")
    for name in BUDGETS:
        assert (str(EVERY[name].row.cell.budget) in text.partition(">Make it again</h3>")[0]) == (name == budget)


def test_a_budget_is_known_however_it_is_written(report: Report) -> None:
    def shown(values: str) -> list[str]:
        record = json.loads(report("--format", "json", "--filter", f"budget={values}"))
        return [row["id"] for row in record["rows"]]

    assert set(shown("BYTES=0.90,parameters=0.9M")) == {"dense", "trained"} | {
        f"{metric}{budget}" for metric in ("", "random-") for budget in ("bytes", "parameters")
    }
    sparsities = [name for name, kind in EVERY.items() if kind.row.cell.budget is None]
    assert sorted(shown("parameters=0.8")) == sorted(shown("none")) == sorted(sparsities)
    with pytest.raises(ConfigError, match=r"no budget in these results named 'bytes=0\.8'. Did you mean 'bytes=0\.9'"):
        shown("bytes=0.8")


def test_rows_of_budgets_are_sorted_by_the_sparsity_they_came_to(report: Report) -> None:
    words = ("--format", "json", "--sort", "sparsity", "--group-by", "none", "--filter", "initializer=wanda")
    rows = json.loads(report(*words))["rows"][2:]
    removed = [row["sparsity_achieved"] if row["sparsity"] is None else row["sparsity"] for row in rows]
    assert removed == sorted(removed)
    assert [row["id"] for row in rows][:3] == ["kv-cache", "bytes", "parameters"]


@pytest.mark.parametrize("name", ["grid", "estimators", "tasks"])
@pytest.mark.parametrize("form", FORMS)
def test_results_of_older_versions_are_reported_in_every_form(form: str, name: str) -> None:
    file = PUBLISHED / f"{name}.json"
    run = CliRunner().invoke(cli, ["report", str(file), "--format", form], catch_exceptions=False)
    assert run.exit_code == 0
    record = json.loads(file.read_text("utf-8"))
    if form == "json":
        assert len(json.loads(run.stdout)["rows"]) == len(record["rows"])
    elif form == "csv":
        assert len(list(csv.DictReader(io.StringIO(run.stdout)))) == len(record["rows"])
    else:
        assert all(number(summary["perplexity_mean"]) in run.stdout for summary in record["summary"])
