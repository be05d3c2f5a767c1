"""The page: one file, no request, no script, nothing of a text read as markup, numbers under every chart."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections import defaultdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from kinds import BUDGETS, fill_with_every_kind, kinds
from stores import cells, edited, fill, run

from polyprune_core.report import Arrangement
from polyprune_core.report.charts import Chart, Series, log_ticks, ticks, trade_offs
from polyprune_core.report.dots import dot_plots
from polyprune_core.report.load import load
from polyprune_core.report.naming import label
from polyprune_core.report.page import findings, page
from polyprune_core.results.cell_file import Details, Group
from tests.rows import changed

VOID = {"meta", "link", "path", "rect", "circle", "br"}
AS_SHOWN = Arrangement("perplexity", group_by="sparsity")


class Reader(HTMLParser):
    """Collects tags, their attributes and texts; every tag that opens must close in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def text(store: Path) -> str:
    return page(load([store]), AS_SHOWN)


def test_the_page_asks_for_nothing_and_runs_nothing(text) -> None:
    reader = read(text)
    assert {"script", "iframe", "object", "img", "form"} & {tag for tag, _ in reader.tags} == set()
    for tag, attributes in reader.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), tag
            if name in ("href", "src", "xlink:href"):
                assert re.match(r"#[\w-]+$|data:,$", value or ""), (tag, value)
    assert re.findall(r"https?:|@import|url\(", text) == []
    (policy,) = [a for a in reader.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_every_link_leads_to_a_place_on_the_page_and_no_id_is_there_twice(text) -> None:
    reader = read(text)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"] for link in reader.all("a")]
    assert len(targets) == 7
    assert {f"#{name}" for name in ids} >= set(targets)
    for chart in reader.all("svg"):
        assert set((chart.get("aria-labelledby") or "").split()) <= set(ids)


def test_every_chart_is_named_for_those_who_do_not_see_it_and_has_its_numbers_below(text) -> None:
    figures = re.findall(r"<figure>.*?</figure>", text, re.S)
    drawn = [figure for figure in figures if 'role="img"' in figure]
    assert len(drawn) == 1 + 2 + 4  # trade-off, a search chart a sparsity, a map a kind and sparsity
    for figure in drawn:
        reader = read(figure)
        chart = next(attributes for _, attributes in reader.tags if attributes.get("role") == "img")
        assert chart.get("aria-label") or reader.texts["title"][0]
        assert reader.all("table")
        assert all(cell.get("scope") in ("col", "row", "rowgroup") for cell in reader.all("th"))
    for svg in read(text).all("svg"):
        assert "role" in svg or svg.get("aria-hidden") == "true"


def test_the_page_has_a_language_a_title_a_dark_scheme_and_a_form_for_paper(text) -> None:
    reader = read(text)
    assert reader.all("html") == [{"lang": "en"}]
    assert reader.texts["title"][0] == "polyprune: tiny on test.txt"
    assert "width=device-width" in str(reader.all("meta"))
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_has_the_numbers_of_the_table_the_costs_and_every_cell(store, text) -> None:
    results = load([store]).comparisons[0].results
    for summary in results.summaries():
        assert f"{summary.perplexity.mean:.2f}" in text
        for row in summary.rows:
            assert f"<code>{row.id}</code>" in text
    assert "21,000" in text
    for fact in ("hash of tiny", "a processor", "learn.txt", "0.1.0"):
        assert fact in text


def test_a_criterion_that_draws_nothing_is_said_to_be_the_same_for_every_seed(tmp_path, text) -> None:
    made = cells(sparsities=(0.2,))
    found = [
        (
            dataclasses.replace(row, nll=4.0, perplexity=math.exp(4)) if row.cell.label.startswith("random") else row,
            details,
        )
        for row, details in made
    ]
    shown = page(load([fill(tmp_path / "store", found)]), AS_SHOWN)
    assert "54.60 (=)" in shown
    assert "(=): same for every seed" in shown
    assert "(=)" not in text


def test_what_comes_first_says_which_row_is_lowest_and_whether_that_means_anything(store) -> None:
    results = load([store]).comparisons[0].results
    first, *_, last = findings(results)
    assert re.fullmatch(
        r"head\+channel, sparsity 0\.2: lowest mean perplexity [\d.]+ by wanda → rloo \(n 3\), "
        "better than every other row beyond the noise.",
        first,
    )
    assert last.startswith("4 searches against their own starts: 2 better")
    one = dataclasses.replace(results, rows=[row for row in results.rows if row.cell.seed in (None, 0)])
    assert "not shown to be better than every other row" in findings(one)[0]


def chart_of(store: Path) -> Chart:
    """The one trade-off of a store; styles do not matter."""
    results = load([store]).comparisons[0].results
    (chart,) = trade_offs(results, results.summaries(), defaultdict(int))
    return chart


def test_a_row_of_a_budget_stands_at_the_sparsity_it_came_to_and_is_joined_to_its_currency_only(tmp_path) -> None:
    chart = chart_of(fill_with_every_kind(tmp_path))
    wanda = next(series for series in chart.series if series.name == "wanda")
    at = {mark.text.split(" at ")[1].split(", n ")[0]: mark.x for mark in wanda.marks}
    assert sorted(at, key=at.__getitem__) == [
        "budget kv-cache=0.7 (sparsity 0.090)",
        "budget bytes=0.9 (sparsity 0.125)",
        "budget parameters=900k (sparsity 0.128)",
        "sparsity 0.2",
        "budget latency=0.8 (sparsity 0.250)",
    ]
    joined = [len(line.split("L")) for line in wanda.line.split("M")[1:]]
    assert sorted(joined) == [1, 1, 1, 2]  # the sparsity and the budget in parameters are one currency
    assert re.match(r"5 criteria at 1 sparsit\w+ and 4 budgets\. A budget stands at", chart.about)


def test_a_chart_says_in_numbers_what_each_budget_cost(tmp_path) -> None:
    chart, every = chart_of(fill_with_every_kind(tmp_path)), kinds()
    line = next(row for row in chart.numbers.rows if row[0].text == "wanda")
    said = dict(zip(chart.numbers.head, (cell.text for cell in line), strict=True))
    for name in ("metric", *BUDGETS):
        assert said[every[name].row.cell.asked] == every[name].perplexity
    assert all(0 < tick.at < 480 for tick in chart.x_ticks)


def test_a_chart_of_sparsities_has_a_tick_at_each_and_one_line_a_criterion(store) -> None:
    chart = chart_of(store)
    assert [tick.text for tick in chart.x_ticks] == ["0.2", "0.3"]
    assert {series.line.count("M") for series in chart.series} == {1}
    assert chart.about == "5 criteria at 2 sparsities."


def test_rows_of_one_sparsity_are_dots_in_order_and_no_chart_against_sparsity(tmp_path) -> None:
    results = load([fill(tmp_path / "store", cells(sparsities=(0.2,)))]).comparisons[0].results
    summaries = results.summaries()
    assert trade_offs(results, summaries, defaultdict(int)) == []
    (plot,) = dot_plots(results, summaries)
    told = sorted((s.log_perplexity.mean, label(s.row)) for s in summaries if s.row.cell.kind != "dense")
    assert [dot.name for dot in plot.dots] == [name for _, name in told]
    places = [dot.at for dot in plot.dots]
    assert places == sorted(places)
    assert all(0 <= dot.low <= dot.at <= dot.high <= 100 for dot in plot.dots if dot.low is not None)
    # The axis is logarithmic: distances are those of the logarithms.
    logs = [log for log, _ in told]
    assert (places[1] - places[0]) / (places[-1] - places[0]) == pytest.approx(
        (logs[1] - logs[0]) / (logs[-1] - logs[0]), abs=1e-3
    )


def test_no_two_of_many_series_look_alike() -> None:
    looks = {(s.colour, s.marker, s.filled) for s in (Series("", style, "") for style in range(84))}
    assert len(looks) == 84


def test_what_comes_first_says_which_row_is_lowest_at_every_budget(tmp_path) -> None:
    every, said = kinds(), findings(load([fill_with_every_kind(tmp_path)]).comparisons[0].results)
    for name in BUDGETS:
        (line,) = [each for each in said if each.startswith(f"head+channel, {every[name].row.cell.asked}: ")]
        assert f"lowest mean perplexity {every[name].perplexity} by wanda (n 1)" in line


def test_a_row_alone_is_named_with_what_was_asked_of_it(tmp_path) -> None:
    text = page(load([fill_with_every_kind(tmp_path)]), AS_SHOWN)
    commands = dict(re.findall(r"<h4>([^<]*)</h4>\n<pre><code>(polyprune compare[^<]*)", text))
    assert "--budget bytes=0.9" in commands["wanda, budget bytes=0.9"]
    assert "--repair bias" in commands["wanda + bias, sparsity 0.2"]


HOSTILE = "<script>alert(1)</script>\"'&<b>\x1b[31m\u202e"


def test_no_text_of_a_file_is_read_as_markup(tmp_path) -> None:
    store = fill(tmp_path / "store")
    record = json.loads((store / "results.json").read_text("utf-8"))
    for row in record["rows"]:
        for name in ("granularity", "initializer", "estimator", "repair"):
            row[name] = row[name] and row[name] + HOSTILE
        row["plugins"] = {HOSTILE: HOSTILE}
    for part in ("model", "texts", "environment"):
        record[part] = json.loads(
            json.dumps(record[part]).replace('"tiny"', json.dumps(HOSTILE)).replace('"test.txt"', json.dumps(HOSTILE))
        )
    record["environment"][HOSTILE] = HOSTILE
    record["config"]["model"] = HOSTILE
    edited(store / "results.json", **record)
    text = page(load([store]), AS_SHOWN)
    reader = read(text)
    assert {tag for tag, _ in reader.tags} & {"script", "b"} == set()
    assert "alert(1)" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_old_cells_make_a_page_that_says_what_is_absent(tmp_path) -> None:
    store = fill(tmp_path / "store", details=False)
    text = page(load([store]), AS_SHOWN)
    assert "hold no window losses" in text
    assert "Which criteria choose the same units?" not in text
    assert "Searches step by step" in text
    for trace in (store / "cells").glob("*.jsonl"):
        trace.unlink()
    assert "No traces of searches lie beside these results" in page(load([store]), AS_SHOWN)


def test_a_broken_trace_costs_its_curve_only(tmp_path) -> None:
    store = fill(tmp_path / "store")
    first, *_ = sorted((store / "cells").glob("*.jsonl"))
    first.write_text('{"forward_tokens": 3}\n{')
    assert "Searches step by step" in page(load([store]), AS_SHOWN)


def test_a_failed_or_infinite_row_is_on_the_page_and_in_no_chart(tmp_path) -> None:
    made = cells()
    odd = [
        (dataclasses.replace(made[1][0], nll=None, perplexity=None, status="failed", error="<i>no</i>"), made[1][1]),
        (dataclasses.replace(made[4][0], nll=1000.0, perplexity=math.inf), made[4][1]),
    ]
    text = page(load([fill(tmp_path / "store", [made[0], *odd, *made[5:]])]), AS_SHOWN)
    assert "failed" in text
    assert "nan" not in text.lower().replace("nano", "")
    for number in re.findall(r'd="M([^"]*)"', text):
        assert re.fullmatch(r"[\d.\-LVHhvlmzM ]+", number), number


def test_a_large_grid_is_below_a_megabyte(tmp_path) -> None:
    """80 layers, 30 criteria, two kinds, two sparsities."""
    groups = tuple(Group(kind, layer, 8) for kind in ("head", "channel") for layer in range(80))
    units = 8 * len(groups)
    rows = [
        (row, found) for row, found in cells((0.2, 0.5), (0,)) if row.cell.kind != "baseline" or row.cell.initializer
    ]
    made = [cell for cell in rows if cell[0].cell.kind == "dense"]
    (pattern,) = [
        row
        for row, _ in rows
        if row.cell.kind == "baseline" and row.cell.initializer == "wanda" and row.cell.sparsity == 0.2
    ]
    rng = np.random.default_rng(0)
    for sparsity in (0.2, 0.5):
        for number in range(30):
            scores = rng.normal(size=units).astype(np.float32)
            details = Details(rows[0][1].window_nll, run(), groups, scores > np.quantile(scores, sparsity), scores)
            name = f"a-criterion-of-ordinary-length-{number}"
            key = f"{number}-{sparsity:g}".replace(".", "-")
            row = changed(
                pattern, id=key, initializer=name, sparsity=sparsity, sparsity_achieved=sparsity, nll=4 + number / 10
            )
            made.append((row, details))
    text = page(load([fill(tmp_path / "store", made)]), AS_SHOWN)
    assert len(text.encode()) < 1_000_000
    read(text)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 3.9), (0, 153_600), (-1, 1), (7, 7.001)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


@pytest.mark.parametrize(("low", "high"), [(50, 60), (50, 500), (50, 1e6), (1.5, 1e9)])
def test_ticks_of_perplexity_are_inside(low: float, high: float) -> None:
    found = log_ticks(math.log(low), math.log(high))
    assert 2 <= len(found) <= 14
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in found)
