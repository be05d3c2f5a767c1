"""The page that shows a grid says what its committed results say, and shows the report that was made of them."""

from __future__ import annotations

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from polyprune_core.results.results import Results

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "kill_grid.py"))
PAGE = BENCHMARK["PAGE"].read_text("utf-8")
RECORD = json.loads(BENCHMARK["RESULTS"].read_text("utf-8"))
REPORT = BENCHMARK["REPORT"].read_text("utf-8")


def test_every_table_is_what_the_command_above_it_prints_and_one_that_is_not_is_made_anew() -> None:
    assert len(BENCHMARK["TABLE"].findall(PAGE)) == PAGE.count("<!--- table -->") == 2
    (ratio, *_) = re.findall(r"×0\.\d+", PAGE)
    assert BENCHMARK["tables"](PAGE.replace(ratio, "×0.111")) == PAGE


def test_the_grid_is_the_one_of_the_suite() -> None:
    results = Results.from_json(RECORD)
    assert len(results.rows) == 73
    assert {row.status for row in results.rows} == {"ok"}
    suite = tomllib.loads(BENCHMARK["SUITE"].read_text("utf-8"))
    assert {name: RECORD["config"][name.replace("-", "_")] for name in suite} == suite


def test_the_marks_do_not_hide_the_noise_of_the_evaluation() -> None:
    """They are drawn from rows alone; the summary was made with the losses of every window beside them."""
    alone = [summary.versus.verdict for summary in Results.from_json(RECORD).summaries() if summary.versus]
    assert alone == [summary["versus"]["verdict"] for summary in RECORD["summary"] if summary["versus"]]


@pytest.mark.parametrize("row", [row for row in RECORD["rows"] if row["kind"] != "dense"], ids=lambda row: row["id"])
def test_the_report_names_every_cell(row) -> None:
    assert row["id"] in REPORT


def test_the_report_is_one_small_file_that_fetches_nothing() -> None:
    assert len(REPORT.encode()) < 1_000_000
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", REPORT)
    assert f'href="../_static/{BENCHMARK["REPORT"].name}"' in PAGE
