"""Several evaluations in every form of report: the excess, its share, and the perplexity of each further text."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from stores import fill, run

from polyprune_core.report import PIPED_WIDTH, summary_sheet
from polyprune_core.report.document import document
from polyprune_core.report.load import Loaded, load
from polyprune_core.report.terminal import tables
from polyprune_core.results.cell_file import Details
from polyprune_core.results.row import Row, TextScores
from tests.rows import row

PLACES = (("a.txt", 128), ("b.txt", 128), ("b.txt", 2048))
DENSE = (3.0, 3.5, 2.5)
# The excess of each row in nats on each text, for seeds 0 and 1; one value is that of both.
EXCESS: dict[str, tuple[tuple[float, float], ...]] = {
    "random": ((1.0, 1.0), (2.0, 2.0), (1.0, 1.0)),
    "wanda": ((0.2, 0.3), (0.5, 0.5), (-0.1, -0.1)),
    "wanda + bias": ((0.05, 0.15), (0.3, 0.3), (0.2, 0.2)),
}
SHARES = {"random": ["400%", "400%"], "wanda": ["100%", "100%"], "wanda + bias": ["40%", "60%"]}


def measured(excesses: tuple[float, ...], dense: bool = False) -> dict[str, Any]:
    evaluations = [
        TextScores(text, length, math.exp(loss + excess), loss + excess, 100, None if dense else 0.1, None, excess)
        for (text, length), loss, excess in zip(PLACES, DENSE, excesses, strict=True)
    ]
    first = evaluations[0]
    own = {"perplexity": first.perplexity, "nll": first.nll, "eval_tokens": 100, "kl_to_dense": first.kl_to_dense}
    return own | {"evaluations": tuple(evaluations)}


def rows() -> list[Row]:
    found = [row(id="dense", kind="dense", **measured((0.0, 0.0, 0.0), dense=True))]
    for name, excess in EXCESS.items():
        metric, _, repair = name.partition(" + ")
        more = {"repair": repair} if repair else {}
        for seed in (0, 1):
            own = measured(tuple(each[seed] for each in excess))
            made = {"kind": "baseline", "scale": "zscore", "initializer": metric, "seed": seed, **more, **own}
            found.append(row(id=f"{metric}-{repair}-{seed}", **made, sparsity_achieved=0.2))
    return found


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    record = run()
    text = record["texts"]["evaluation"]
    several = [text | {"name": name, "tokens_per_window": length} for name, length in PLACES]
    record["texts"] |= {"evaluation": several[0], "evaluations": several}
    made = [(each, Details([each.nll], record)) for each in rows()]  # type: ignore[arg-type]
    return load([fill(tmp_path / "store", made, record)])


def test_shares_are_of_the_best_metric_without_repair_on_the_same_text(loaded: Loaded) -> None:
    titles = ["share", "share on b.txt at 128", "share on b.txt at 2048"]
    sheet = summary_sheet(loaded.comparisons[0].results, titles=titles)
    # At 2048 the best metric is better than the dense model: there is nothing to be a fraction of.
    assert sheet.head == ("criterion", "share", "share on b.txt at 128")
    assert {name.text: [cell.text for cell in cells] for name, *cells in sheet.rows} == {"dense": ["", ""], **SHARES}


def test_another_set_of_seeds_has_no_share_of_it() -> None:
    from polyprune_core.results.summaries import summarise

    kept = [each for each in rows() if each.id != "wanda-bias-1"]
    repaired = next(s for s in summarise(kept, {}) if s.row.cell.repair == "bias")
    assert repaired.shares == (None, None, None)


@pytest.mark.parametrize("form", ["table", "markdown", "latex"])
def test_tables_have_the_excess_and_a_perplexity_of_every_further_evaluation(form, loaded: Loaded) -> None:
    written = document(loaded, form)
    for value in ("0.250", "0.100", f"{math.exp(4.0):.2f}", f"{math.exp(2.7):.2f}"):
        assert value in written
    assert "fraction" not in written
    asked = ["perplexity", "perplexity on b.txt at 2048", "share"]
    chosen = document(loaded, form, columns=asked)
    assert "0.250" not in chosen
    for share in ("400%", "100%", "40%"):
        assert share.replace("%", "\\%" if form == "latex" else "%") in chosen
    assert "fraction" in chosen


def test_a_narrow_terminal_loses_columns_and_no_names(loaded: Loaded) -> None:
    sheet = summary_sheet(loaded.comparisons[0].results)
    for width in (80, PIPED_WIDTH):
        (grid,) = tables(sheet, width)
        out = io.StringIO()
        Console(file=out, width=width).print(grid)
        assert max(map(len, out.getvalue().splitlines())) <= width
        assert "wanda + bias" in out.getvalue()
        assert "0.250" in out.getvalue()


def test_csv_has_every_measure_of_every_evaluation(loaded: Loaded) -> None:
    lines = {line["id"]: line for line in csv.DictReader(io.StringIO(document(loaded, "csv")))}
    line = lines["wanda-bias-1"]
    assert float(line["excess"]) == pytest.approx(0.15)
    assert float(line["share"]) == pytest.approx(0.15 / 0.25)
    assert float(line["perplexity on b.txt at 128"]) == pytest.approx(math.exp(3.8))
    assert float(line["share on b.txt at 128"]) == pytest.approx(0.6)
    assert float(line["excess on b.txt at 2048"]) == pytest.approx(0.2)
    assert line["share on b.txt at 2048"] == ""
    assert lines["dense"]["excess"] == "0.0"


def test_json_has_means_and_shares_in_its_summary(loaded: Loaded) -> None:
    summary = json.loads(document(loaded, "json"))["summary"]
    repaired = next(each for each in summary if each["repair"] == "bias")["evaluations"]
    assert [(each["text"], each["seq_len"]) for each in repaired] == list(PLACES)
    assert [each["excess"] for each in repaired] == pytest.approx([0.1, 0.3, 0.2])
    assert [each["share"] for each in repaired[:2]] == pytest.approx([0.4, 0.6])
    assert repaired[2]["share"] is None
    means = [(math.exp(3.05) + math.exp(3.15)) / 2, math.exp(3.8), math.exp(2.7)]
    assert [each["perplexity_mean"] for each in repaired] == pytest.approx(means)


def test_the_page_has_them_all_and_every_text(loaded: Loaded) -> None:
    page = document(loaded, "html")
    for text in ("share on b.txt at 128", "perplexity on b.txt at 2048", "40%", "60%", "0.250", "evaluation 3"):
        assert text in page
