"""The forms of a report: order, groups and filters; LaTeX and Markdown that show what they were given."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from stores import GROUPS, UNITS, cells, fill, run

from polyprune_core.errors import ConfigError
from polyprune_core.report import Arrangement, label, latex, markdown, to_csv
from polyprune_core.report.agreement import agreement_sheets
from polyprune_core.report.cost import cost_sheet
from polyprune_core.report.csvfile import written
from polyprune_core.report.document import SHOWN, document
from polyprune_core.report.kept import kept_sheets
from polyprune_core.report.latex import escape, latex_table
from polyprune_core.report.load import Loaded, load
from polyprune_core.report.markdown import escape as escape_markdown
from polyprune_core.report.sheet import Band, Cell, Sheet, summary_sheet
from polyprune_core.report.terminal import tables
from polyprune_core.results.results import Results


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load([fill(tmp_path_factory.mktemp("store"))])


@pytest.fixture
def results(loaded: Loaded) -> Results:
    return loaded.comparisons[0].results


def names(sheet: Sheet) -> list[tuple[str, list[str]]]:
    return [(band.title, [row[0].text for row in band.rows]) for band in sheet.bands]


def printed(sheet: Sheet, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    for table in tables(sheet, width):
        console.print(table)
    return console.file.getvalue()


# Order, groups, filters


def test_groups_have_titles_and_rows_their_order_within_them(results) -> None:
    sheet = summary_sheet(results, Arrangement("perplexity", group_by="sparsity"))
    rows = ["wanda → rloo", "wanda", "wanda → no search", "wanda → reinforce", "random"]
    assert names(sheet)[0] == ("", ["dense"])
    assert [title for title, _ in names(sheet)[1:]] == ["sparsity 0.2", "sparsity 0.3"]
    for _, found in names(sheet)[1:]:
        assert (found[0], found[-1]) == (rows[0], rows[-1])
        assert sorted(found) == sorted(rows)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_dense_row_comes_first_whichever_way_rows_are_sorted(results, reverse) -> None:
    groups = Arrangement("perplexity", reverse).groups(results)
    (shown,) = [group for _, group in groups]
    means = [summary.perplexity.mean for summary in shown[1:]]
    assert shown[0].row.cell.kind == "dense"
    assert means == sorted(means, reverse=reverse)


def test_rows_without_what_is_sorted_by_come_last(results) -> None:
    ((_, shown),) = Arrangement("ratio").groups(results)
    ratios = [summary.versus and summary.versus.ratio for summary in shown[1:]]
    known = [ratio for ratio in ratios if ratio is not None]
    assert len(known) == 4
    assert ratios == [*sorted(known), *[None] * (len(ratios) - 4)]


@pytest.mark.parametrize(
    ("keep", "shown"),
    [
        ({"sparsity": ("0.30",)}, 6),
        ({"estimator": ("rloo",)}, 3),
        ({"estimator": ("RLOO", "reinforce")}, 5),
        ({"kind": ("baseline",), "initializer": ("wanda",)}, 2),
        ({"status": ("ok",)}, 11),
    ],
)
def test_filters_choose_rows_and_keep_the_dense_one_unless_kinds_are_named(results, keep, shown) -> None:
    assert sum(len(group) for _, group in Arrangement(keep=keep).groups(results)) == shown
    rows = Arrangement(keep=keep).rows(results)
    assert ("dense" in {row.cell.kind for row in rows}) == ("kind" not in keep)


def test_a_filter_leaves_statistics_those_of_the_whole_comparison_and_a_choice_of_seeds_does_not(results) -> None:
    def rloo(**keep: tuple[str, ...]):
        ((_, shown),) = Arrangement("sparsity", keep={"estimator": ("rloo",), "sparsity": ("0.2",), **keep}).groups(
            results
        )
        return shown[1]

    (whole,) = [s for s in results.summaries() if (s.row.cell.estimator, s.row.cell.sparsity) == ("rloo", 0.2)]
    assert rloo().versus == whole.versus
    assert rloo(seed=("0", "2")).versus.n == 2


def test_a_filter_that_nothing_can_pass_is_refused_with_what_there_is(results) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rloo'"):
        Arrangement(keep={"estimator": ("rlo",)}).groups(results)
    with pytest.raises(ConfigError, match="no filter named 'colour'"):
        Arrangement(keep={"colour": ("red",)}).groups(results)


def test_csv_and_json_have_the_rows_and_order_of_the_table(loaded, results) -> None:
    arrangement = Arrangement("cost", True, "sparsity", {"sparsity": ("0.3",)})
    order = [row.id for _, group in arrangement.groups(results) for s in group for row in s.rows]
    assert [row["id"] for row in csv.DictReader(io.StringIO(to_csv(results, arrangement)))] == order
    record = json.loads(document(loaded, "json", arrangement=arrangement))
    assert [row["id"] for row in record["rows"]] == order
    assert [(s["estimator"], s["sparsity"]) for s in record["summary"]] == [
        (s.row.cell.estimator, s.row.cell.sparsity) for _, group in arrangement.groups(results) for s in group
    ]


# LaTeX, Markdown, CSV

HOSTILE = "a_b & 50% $x$ #1 {y} ~ ^ \\ <i>|`*[l](u)"


def test_every_sign_that_latex_would_act_on_is_set_as_it_is() -> None:
    text = escape(HOSTILE)
    for sign in "&%$#_{}":
        assert not re.search(rf"(?<!\\){re.escape(sign)}", re.sub(r"\\text\w+\{\}|\$\\sim\$", "", text)), sign
    for name in ("asciicircum", "backslash", "less", "greater", "bar"):
        assert f"\\text{name}{{}}" in text
    assert r"$\sim$" in text


def test_a_latex_table_is_one_of_booktabs_with_as_many_cells_in_each_line(results) -> None:
    lines = latex(results, arrangement=Arrangement("perplexity", group_by="sparsity")).splitlines()
    assert lines[0].startswith("%")
    assert "booktabs" in lines[0]
    for rule in (r"\toprule", r"\bottomrule", r"\end{tabular}", r"\end{table}"):
        assert lines.count(rule) == 1
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", "\n".join(lines))[1])
    body = [line for line in lines if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.replace(r"\&", "").count("&") for line in body} == {columns - 1}
    assert all(ord(sign) < 128 for line in lines for sign in line)
    assert r"\textbf{" in "\n".join(lines)


def test_bold_is_the_row_that_is_best_and_no_other(results) -> None:
    best = {(label(s.row), s.row.cell.sparsity) for s in results.summaries() if s.best}
    assert best == {("wanda → rloo", 0.2), ("wanda → rloo", 0.3)}
    bold = [line for line in markdown(results).splitlines() if "**" in line]
    assert [line.split(" | ")[0] for line in bold] == ["| wanda → rloo"] * 2


def test_a_hostile_name_is_one_cell_of_markdown_and_no_markup() -> None:
    sheet = Sheet("t", ("criterion", "n"), (Band("", ((Cell(HOSTILE), Cell("1")),)),), "")
    text = escape_markdown(HOSTILE)
    assert not re.search(r"(?<!\\)[|<>`*\[\]]", text)
    assert text.replace("\\", "") == HOSTILE.replace("\\", "")
    assert latex_table(sheet).count("tabular") == 2


# Agreement and choices


def test_agreement_is_one_with_itself_over_seeds_only_where_seeds_agree(results) -> None:
    sheets = {sheet.title: sheet for sheet in agreement_sheets(results)}
    assert len(sheets) == 2 * (2 + 1)
    sheet = sheets["Rank agreement, channel, head+channel, sparsity 0.2"]
    matrix = {row[0].text.split(" ", 1)[1]: [cell.text for cell in row[1:]] for row in sheet.rows}
    assert list(matrix) == ["random", "wanda", "wanda → no search", "wanda → rloo", "wanda → reinforce"]
    values = np.array([[float(value) for value in line] for line in matrix.values()])
    assert (values == values.T).all()
    assert abs(values[0]).max() < 0.3  # random agrees with nothing, not even with its other seeds
    assert values[1:, 1:].min() > 0.7


def test_overlap_is_told_beside_what_chance_gives(results) -> None:
    (sheet,) = [s for s in agreement_sheets(results) if s.title.startswith("Overlap") and s.title.endswith("0.2")]
    chance = float(re.search(r"have (\d\.\d+)", sheet.note)[1])
    random = [float(cell.text) for cell in sheet.rows[0][2:]]
    assert random == pytest.approx([chance] * len(random), abs=0.1)


def test_a_cell_without_scores_has_no_row_in_the_matrix(loaded, tmp_path) -> None:
    old = load([fill(tmp_path / "old", details=False)]).comparisons[0].results
    assert agreement_sheets(old) == []
    assert kept_sheets(old) == []
    with pytest.raises(ConfigError, match="do not hold"):
        document(load([tmp_path / "old"]), "table", "agreement")


def test_where_nothing_is_left_to_show_the_reason_is_not_that_the_cells_are_old(loaded) -> None:
    alone = Arrangement(keep={"initializer": ("random",)})
    with pytest.raises(ConfigError, match="agreement two of one granularity and budget"):
        document(loaded, "table", "agreement", alone)
    assert "random" in document(loaded, "table", "kept", alone)


def test_each_line_of_csv_says_which_of_several_tables_it_is_of(loaded) -> None:
    lines = [line for line in csv.reader(io.StringIO(document(loaded, "csv", "kept"))) if line]
    titles = [sheet.title for sheet in kept_sheets(loaded.comparisons[0].results)]
    assert [line[0] for line in lines if line[1] == "wanda"] == titles


def test_units_kept_add_up_to_the_choice(results) -> None:
    sheets = kept_sheets(results)
    assert len(sheets) == 2 * 2
    layers = len(GROUPS) // 2
    for summary in (s for s in results.summaries() if s.row.cell.sparsity == 0.3):
        rows = [row for s in sheets if s.title.endswith("0.3") for row in s.rows if row[0].text == label(summary.row)]
        assert [len(row) - 1 for row in rows] == [layers, layers]
        kept = sum(float(cell.text) for row in rows for cell in row[1:])
        assert kept == pytest.approx(np.mean([results.details[r.id].keep.sum() for r in summary.rows]), abs=0.2)
        assert kept == pytest.approx(0.7 * UNITS, abs=1)
    shades = [cell.shade for sheet in sheets for row in sheet.rows for cell in row[1:]]
    assert (min(shades), max(shades)) == (0.0, 1.0)


def test_costs_are_those_of_the_rows(results) -> None:
    sheet = cost_sheet(results)
    at = {head: index for index, head in enumerate(sheet.head)}
    rloo = next(row for row in sheet.rows if row[0].text == "wanda → rloo")
    assert [rloo[at[name]].text for name in ("forward passes", "forward tokens", "n")] == ["28", "21,000", "3"]


def test_a_wide_matrix_is_split_and_no_number_of_it_is_cut(results) -> None:
    for sheet in (*agreement_sheets(results), *kept_sheets(results)):
        text = printed(sheet, 40)
        assert max(map(len, text.splitlines())) <= 40
        assert "…" not in text
        numbers = [cell.text for row in sheet.rows for cell in row[1:]]
        found = text.split()
        assert all(found.count(number) >= numbers.count(number) for number in set(numbers))


# Whole reports


@pytest.mark.parametrize("show", SHOWN)
@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex"])
def test_every_table_has_every_form(loaded, show, form) -> None:
    text = document(loaded, form, show, Arrangement("perplexity", group_by="sparsity"))
    assert text.endswith("\n")
    assert "\x1b" not in text
    assert "rloo" in text


def test_forms_of_one_comparison_refuse_two_and_say_which(loaded, tmp_path) -> None:
    other = load([fill(tmp_path / "other", cells((0.2,), (0,)), run("other"))])
    two = Loaded([*loaded.comparisons, *other.comparisons], [])
    for form in ("csv", "json"):
        with pytest.raises(ConfigError, match=r"tiny on test\.txt; other on test\.txt"):
            document(two, form)
    for form in ("table", "markdown", "latex", "html"):
        text = document(two, form)
        assert "other on test.txt" in text
        assert "tiny on test.txt" in text


@pytest.mark.parametrize(
    ("form", "show", "columns"),
    [
        ("json", "cost", None),
        ("csv", "results", ("n",)),
        ("table", "cost", ("n",)),
        ("html", "results", ("n",)),
        ("table", "results", ("m",)),
    ],
)
def test_what_cannot_be_asked_of_a_form_is_refused(loaded, form, show, columns) -> None:
    with pytest.raises(ConfigError):
        document(loaded, form, show, columns=columns)


def test_columns_are_those_asked_for(loaded) -> None:
    text = document(loaded, "markdown", columns=("perplexity", "n"))
    assert text.splitlines()[0] == "| criterion | perplexity | n |"


def test_a_caption_explains_the_columns_that_are_there_and_no_others(loaded, results) -> None:
    whole = summary_sheet(results).caption
    for sentence in ("Evaluation noise:", "q:", "Pareto:", "Bold:"):
        assert sentence in whole
    few = document(loaded, "markdown", columns=("perplexity", "n"))
    assert "Bold:" in few
    assert "Pareto:" not in few
    assert "Bold: better than every other row at its sparsity," in whole
    assert "over all 4 of them" in summary_sheet(results, Arrangement(keep={"sparsity": ("0.2",)})).caption


FORMULA = '=HYPERLINK("http://x","y")'


def test_no_text_of_a_csv_is_a_formula_and_every_number_stays_one(results) -> None:
    first, *others = results.rows
    row = dataclasses.replace(first, tasks={FORMULA: {"-cmd": -0.5}}, error="+1+cmd|x!A0")
    head, line = list(csv.reader(io.StringIO(to_csv(dataclasses.replace(results, rows=[row, *others])))))[:2]
    found = dict(zip(head, line, strict=True))
    assert found["error"] == "'+1+cmd|x!A0"
    assert found[f"'{FORMULA} -cmd"] == "-0.5"
    assert written([["-0.5", "+1.2e-3 ±0.1", -3]]) == "-0.5,+1.2e-3 ±0.1,-3\n"


def test_one_of_a_kind_is_told_in_the_singular(tmp_path) -> None:
    dumped = [(made, made[0].to_json()) for made in cells((0.2,), (0, 1, 2))]
    kept = [made for made, row in dumped if row["initializer"] in (None, "wanda") and row["kind"] != "baseline"]
    one = [made for made in kept if made[0].to_json()["estimator"] in (None, "rloo")]
    page = document(load([fill(tmp_path / "one", one)]), "html")
    assert "1 search against its own start" in page
    assert not re.search(r"\b1 (searches|sparsities|cells|criteria)\b|all 1 of them", page)
