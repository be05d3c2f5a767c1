"""Results for people and scripts: names stay whole, numbers stay short, every form says the same."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from polyprune_core import report
from polyprune_core.errors import ConfigError
from polyprune_core.report import label, number
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row, columns_of_row
from tests.rows import changed
from tests.rows import row as made_row

ESTIMATORS = ("reinforce", "rloo", "antithetic", "reinforce-released")


def row(kind: str, initializer: str | None = "wanda", seed: int = 0, **changes: Any) -> Row:
    measured: dict[str, Any] = {
        "sparsity_achieved": 0.2023,
        "parameters_kept": 1_131_264,
        "parameters_kept_fraction": 0.837,
        "nll": 3.5 + seed / 100,
        "perplexity": math.exp(3.5 + seed / 100),
        "eval_tokens": 124,
        "kl_to_dense": 0.142,
        "top1_agreement": 0.774,
        "forward_passes": 64,
        "forward_tokens": 3_072_000,
        "search_seconds": 1234.5,
        "peak_memory_mb": 2048.0,
    }
    where = {"granularity": "head+channel", "sparsity": 0.2, "seed": seed, "scope": "kind"}
    if kind == "dense":
        return made_row(id="0", kind="dense", perplexity=30.0, nll=math.log(30), parameters_kept=1_351_296)
    if kind == "baseline":
        where["scale"] = "zscore"
    return made_row(id="1", kind=kind, initializer=initializer, **(measured | where | changes))


def results(*rows: Row) -> Results:
    texts = {
        role: {"name": "builtin:pydocs", "sha256": "0", "windows": 4, "tokens_per_window": 32}
        for role in ("calibration", "evaluation")
    }
    model = {
        "name": "tiny",
        "parameters": 1_351_296,
        "prunable_parameters": {"head+channel": 1_087_488},
        "dtype": "bfloat16",
        "device": "cpu",
    }
    return Results("0.1", {}, {"seq_len": 32}, model, texts, list(rows))


def grid(seeds: int = 1, **changes: Any) -> Results:
    """What a comparison of everything gives."""
    every = range(seeds)
    rows = [row("dense")]
    for metric in ("random", "magnitude", "wanda", "llm-pruner:taylor=element2"):
        passes = 8 if metric.startswith("llm") else 0
        rows += [row("baseline", metric, seed, backward_passes=passes, **changes) for seed in every]
    rows += [row("start", "wanda", seed, **changes) for seed in every]
    for name in ESTIMATORS:
        rows += [row("search", "wanda", seed, estimator=name, nll=3.4 + seed / 90, **changes) for seed in every]
    return results(*rows)


def printed(found: Results, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(report.table(found, width))
    return console.file.getvalue()


def labels(found: Results) -> list[str]:
    differs = report.varied(found)
    return [label(summary.row, differs) for summary in found.summaries()]


def lines_that_begin_with(text: str, name: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(rf" *{re.escape(name)}(?:  |$)", line)]


@pytest.mark.parametrize(("width", "seeds"), [(80, 1), (80, 3), (100, 1), (100, 3), (160, 1), (160, 3)])
def test_every_criterion_is_named_whole_on_one_line(width: int, seeds: int) -> None:
    found = grid(seeds)
    text = printed(found, width)
    assert max(map(len, text.splitlines())) <= width
    for name in labels(found):
        assert len(lines_that_begin_with(text, name)) == 1, name


@pytest.mark.parametrize("width", [80, 100, 160])
def test_nothing_in_a_table_is_cut(width: int) -> None:
    found = grid(3)
    assert "…" not in printed(found, width)
    heads = [" ".join(str(column.header).split()) for column in report.table(found, width).columns]
    words = printed(found, width).split()
    assert [word for head in heads for word in head.split() if word not in words] == []


def test_names_with_everything_that_varies_are_whole_at_160_columns() -> None:
    rows = grid().rows
    other = [changed(r, scope="global") for r in rows if r.cell.kind != "dense"]
    third = [changed(r, granularity="attention+mlp") for r in other]
    found = results(*rows, *other, *third)
    assert len(set(labels(found))) == len(labels(found))
    text = printed(found, 160)
    for name in labels(found):
        assert len(lines_that_begin_with(text, name)) == 1, name


def test_a_wider_table_shows_everything_that_a_narrower_one_does() -> None:
    found = grid(3)
    heads = []
    for width in (80, 120, 160, 220):
        narrow = {column.header for column in report.table(found, width).columns}
        heads.append(narrow)
    for narrow, wide in pairwise(heads):
        assert narrow <= wide
    needed = {column.title for column in report.COLUMNS if not column.optional}
    assert {"criterion", "perplexity", "against its start"} <= heads[0]
    assert heads[0] & needed == heads[-1] & needed


@pytest.mark.parametrize("width", [40, 50, 80, 120, 220])
def test_a_caption_explains_the_columns_that_stand_there_and_names_the_others(width: int) -> None:
    found = grid(3)
    grid_ = report.table(found, width)
    shown = {str(column.header) for column in grid_.columns}
    assert Measurement.get(Console(width=1000), Console(width=1000).options, grid_).minimum <= width  # none is squeezed
    every = {column.title for column in report.COLUMNS if any(map(column.text, found.summaries()))}
    explained, _, named = str(grid_.caption).partition("Not shown, for want of room: ")
    assert set(filter(None, named.removesuffix(".").split(", "))) == every - shown
    for title in ("Excess", "Pareto", "q"):
        assert (f"{title}: " in explained) == (title.replace("Excess", "excess") in shown)


def test_every_cell_of_a_wide_table_is_whole() -> None:
    found = grid(3)
    text = printed(found, 220)
    for summary, name in zip(found.summaries(), labels(found), strict=True):
        line = lines_that_begin_with(text, name)[0]
        for column in report.COLUMNS:
            assert column.text(summary) in line, column.title


def test_the_table_of_the_dense_model_alone_keeps_its_heading_whole() -> None:
    assert "criterion" in printed(results(row("dense")), 160)


def test_names_and_values_are_not_read_as_markup() -> None:
    found = results(row("baseline", "odd[red]name[/]"), row("start", "other[/]"))
    text = printed(found, 160)
    assert "odd[red]name[/]" in text
    assert "other[/]" in text


def test_the_caption_says_what_was_measured_on_what() -> None:
    text = report.caption(grid())
    for part in (
        "tiny",
        "1.4 M parameters",
        "head+channel",
        "bfloat16",
        "builtin:pydocs",
        "4 windows of 32",
        "t interval",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 2, ""),
        (0.0, 2, "0.00"),
        (43.876, 2, "43.88"),
        (43.876, 0, "44"),
        (-3.14159, 3, "-3.142"),
        (9999.0, 2, "9999.00"),
        (10_000.0, 2, "1.0e4"),
        (1.25e12, 2, "1.2e12"),
        (-123_456.0, 2, "-1.2e5"),
        (1.5e300, 2, "1.5e300"),
        (math.inf, 2, "inf"),
        (math.nan, 2, "inf"),
    ],
)
def test_numbers_are_short(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_no_number_is_longer_than_eight_signs() -> None:
    for exponent in range(-8, 308):
        for lead in (1.0, 3.7, 9.99999):
            assert len(number(lead * 10.0**exponent)) <= 8


def test_rows_are_called_after_what_decided_them() -> None:
    assert label(row("dense")) == "dense"
    assert label(row("baseline", "magnitude")) == "magnitude"
    assert label(row("start")) == "wanda → no search"
    assert label(row("search", estimator="rloo")) == "wanda → rloo"


def test_a_name_says_what_tells_the_rows_of_its_table_apart_and_no_more() -> None:
    found = results(row("baseline", scope="global"), row("search", estimator="rloo", granularity="layer"))
    assert report.varied(found) == {"granularity", "scope"}
    assert labels(found) == ["wanda (head+channel, global)", "wanda → rloo (layer, kind)"]
    assert report.varied(grid()) == frozenset()


def test_a_row_that_needed_gradients_is_marked() -> None:
    assert label(row("baseline", "llm-pruner", backward_passes=8)) != label(row("baseline", "llm-pruner"))


def test_a_finished_cell_is_a_line_with_its_outcome() -> None:
    text = Text.from_markup(report.line(row("search", estimator="rloo", seed=3, nll=1, perplexity=46.5))).plain
    assert text.startswith("wanda → rloo (head+channel, kind), sparsity 0.2, seed 3: ")
    assert "46.50" in text
    assert Text.from_markup(report.line(row("dense"))).plain.startswith("dense: ")


def test_a_failed_cell_is_a_line_with_its_reason_whatever_signs_are_in_it() -> None:
    reason = "initializer 'x' returned [/] [red]3[/red] of [8] {x}"
    failed = row("baseline", "odd[/]", status="failed", error=reason, perplexity=None, nll=None)
    text = Text.from_markup(report.line(failed)).plain
    assert text.startswith("odd[/]")
    assert "failed" in text
    assert text.endswith(reason)


def test_a_failed_row_is_a_row_of_every_table() -> None:
    failed = row(
        "baseline", "magnitude", status="failed", error="no", perplexity=None, nll=None, sparsity_achieved=None
    )
    found = results(row("dense"), failed)
    assert "failed" in lines_that_begin_with(printed(found, 160), "magnitude")[0]
    assert "failed" in next(line for line in report.markdown(found).splitlines() if line.startswith("| magnitude |"))


def test_markdown_has_a_line_a_summary_and_all_columns_that_say_something_in_each() -> None:
    found = grid(2)
    table, _, note = report.markdown(found).partition("\n\n")
    lines = table.splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == labels(found)
    shown = [column for column in report.COLUMNS if any(map(column.text, found.summaries()))]
    assert lines[0] == "| criterion | " + " | ".join(column.title for column in shown) + " |"
    assert {line.count("|") for line in lines} == {len(shown) + 2}
    assert note == report.caption(found)


def test_markdown_of_chosen_columns_has_those_only() -> None:
    head = report.markdown(grid(), titles=("perplexity", "n")).splitlines()[0]
    assert head == "| criterion | perplexity | n |"


def test_csv_has_every_field_of_every_row_and_reads_back() -> None:
    found = grid(2)
    rows = list(csv.DictReader(io.StringIO(report.to_csv(found))))
    assert list(rows[0]) == [name for name in columns_of_row() if name not in ("plugins", "tasks", "evaluations")]
    assert [r["perplexity"] for r in rows] == [str(r.perplexity) for r in found.rows]
    assert [r["estimator"] for r in rows] == [r.cell.estimator or "" for r in found.rows]


def test_a_reason_with_commas_quotes_and_lines_is_one_field_of_csv() -> None:
    reason = 'no "such", thing\nat all'
    found = results(row("baseline", status="failed", error=reason))
    assert [r["error"] for r in csv.DictReader(io.StringIO(report.to_csv(found)))] == [reason]


@pytest.mark.parametrize("form", report.FORMATS)
def test_every_form_is_written_to_the_console_given_without_control_codes(form: str) -> None:
    console = Console(file=io.StringIO(), width=40)
    report.write(grid(), form, console)
    text = console.file.getvalue()
    assert text.endswith("\n")
    assert "\x1b" not in text
    assert "reinforce-released" in text  # a pipe is not 40 columns wide
    if form == "json":
        assert Results.from_json(json.loads(text, parse_constant=pytest.fail)).rows == grid().rows


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_to_be() -> None:
    console = Console(file=io.StringIO(), width=40)
    report.write(grid(3), "table", console)
    text = console.file.getvalue()
    assert len(max(text.splitlines(), key=len)) > 100
    assert "…" not in text
    for name in labels(grid(3)):
        assert len(lines_that_begin_with(text, name)) == 1, name


def test_an_unknown_form_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="table, json, csv, markdown, latex"):
        report.write(grid(), "jsn", Console(file=io.StringIO()))


def test_the_mark_beside_a_ratio_is_the_verdict_of_its_interval() -> None:
    for step, mark in ((-0.3, "✓"), (0.3, "✗"), (0.0, "~")):
        starts = [row("start", seed=seed) for seed in range(3)]
        noise = (0.001, -0.002, 0.0015)
        searches = [
            row("search", seed=start.cell.seed, estimator="rloo", nll=start.nll + step + extra)
            for start, extra in zip(starts, noise, strict=True)
        ]
        found = results(*starts, *searches)
        assert mark in lines_that_begin_with(printed(found, 160), "wanda → rloo")[0]
    alone = printed(results(row("start"), row("search", estimator="rloo")), 160)
    assert not set("✓✗~") & set(lines_that_begin_with(alone, "wanda → rloo")[0])


def with_scores(seed: int, accuracy: float) -> Row:
    scores = {"facts": {"acc": accuracy, "acc_stderr": 0.05, "items": 60.0}}
    return dataclasses.replace(row("baseline", seed=seed), tasks=scores)


@pytest.mark.parametrize("form", ["table", "markdown", "latex"])
def test_a_criterion_that_draws_nothing_says_that_it_is_the_same_for_every_seed(form: str) -> None:
    alike = [row("baseline", "magnitude", seed, nll=3.5, perplexity=math.exp(3.5)) for seed in range(3)]
    drawn = [row("baseline", "random", seed) for seed in range(3)]
    console = Console(file=io.StringIO(), width=160, highlight=False)
    report.write(results(*alike, *drawn), form, console)
    text = console.file.getvalue()
    assert "33.12 (=)" in text
    assert "(=): same for every seed" in " ".join(text.split())
    assert "(=)" not in printed(results(*drawn), 160)
    assert "(=)" not in printed(results(alike[0]), 160)


def test_csv_and_json_keep_every_seed_of_a_criterion_that_draws_nothing() -> None:
    found = results(*(row("baseline", "magnitude", seed, nll=3.5, perplexity=math.exp(3.5)) for seed in range(3)))
    assert len(list(csv.DictReader(io.StringIO(report.to_csv(found))))) == 3
    console = Console(file=io.StringIO())
    report.write(found, "json", console)
    (summary,) = json.loads(console.file.getvalue())["summary"]
    assert (summary["n"], summary["perplexity_sd"]) == (3, 0.0)


def test_noise_that_is_there_is_never_shown_as_none() -> None:
    rows = [row("baseline", seed=seed, perplexity=30 + seed / 50, nll=math.log(30 + seed / 50)) for seed in (0, 1)]
    assert "30.01 ± 0.01" in printed(results(*rows), 160)


def test_a_task_is_a_column_with_the_mean_over_seeds_and_the_error_over_items() -> None:
    found = results(row("dense"), with_scores(0, 0.5), with_scores(1, 0.6))
    text = report.markdown(found)
    assert "| facts |" in text
    assert "0.550 ± 0.050" in text
    assert "standard error over items" in text
    assert "standard error over items" not in report.markdown(results(row("dense")))


def test_csv_has_a_column_for_every_metric_of_a_task() -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv(results(row("dense"), with_scores(0, 0.5))))))
    assert [r["facts acc"] for r in rows] == ["", "0.5"]
    assert [r["facts items"] for r in rows] == ["", "60.0"]


def test_a_budget_has_a_column_with_what_was_asked_and_what_came_of_it() -> None:
    pruned = changed(row("baseline"), budget="bytes=200MB", budget_achieved=198.7e6)
    text = report.markdown(results(row("dense"), pruned))
    assert "| bytes=200MB → 198.7MB |" in text
    assert report.line(pruned).count("budget bytes=200MB") == 1
