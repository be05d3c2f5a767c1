"""What `polyprune compare` prints: the same results in every form, a warning where there is reason for one."""

from __future__ import annotations

import csv
import io
import re

import pytest
from commandline import polyprune
from grids import GRID, grid

from polyprune_core import report
from polyprune_core.results.results import Results

pytestmark = pytest.mark.usefixtures("two_short_texts")


def test_every_form_is_alone_on_stdout_and_names_every_row(unbroken, record) -> None:
    store, _ = unbroken
    results = Results.from_json(record)
    names = [report.label(row, report.varied(results)) for row in results.rows]
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


def test_one_text_in_both_roles_is_warned_of_and_two_texts_are_not(tmp_path, unbroken) -> None:
    text = tmp_path / "same.txt"
    text.write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 200)
    run = grid(tmp_path / "store", "--calibration", text, "--evaluation", text, "--estimators", "none")
    assert run.status == 0
    warnings = [line for line in run.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "same.txt" in warnings[0]
    assert "warning" not in unbroken[1].err
