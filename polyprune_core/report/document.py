"""A whole report as one text: every comparison of the stores, in the form and with the table asked for."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from polyprune_core.errors import ConfigError, unknown_name
from polyprune_core.report.agreement import agreement_sheets
from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.columns import PAPER
from polyprune_core.report.columns import columns as all_columns
from polyprune_core.report.cost import cost_sheet
from polyprune_core.report.csvfile import csv_table, to_csv
from polyprune_core.report.kept import kept_sheets
from polyprune_core.report.latex import latex_table
from polyprune_core.report.load import Loaded
from polyprune_core.report.markdown import markdown_table
from polyprune_core.report.sheet import Sheet, heading, summary_sheet
from polyprune_core.report.terminal import PIPED_WIDTH, tables
from polyprune_core.report.write import to_json
from polyprune_core.results.results import Results

SHEETS: dict[str, Callable[[Results, Arrangement], list[Sheet]]] = {
    "cost": lambda results, arrangement: [cost_sheet(results, arrangement)],
    "kept": kept_sheets,
    "agreement": agreement_sheets,
}
SHOWN = ("results", *SHEETS)
TABULAR = ("table", "markdown", "latex")
ONE_ONLY = ("json", "csv")


def document(
    loaded: Loaded,
    form: str,
    show: str = "results",
    arrangement: Arrangement = AS_RUN,
    columns: Sequence[str] | None = None,
    console: Console | None = None,
) -> str:
    """Returns the report; a table is as wide as `console` and has its colours if that is a terminal.

    Raises:
        ConfigError: the form holds one comparison and there are several, a column is unknown, or the stores do not
            hold what is asked for.
    """
    if form == "json" and show != "results":
        raise ConfigError(f"json holds the results; give --show {show} with table, markdown, latex or csv.")
    if columns is not None and (show != "results" or form not in TABULAR):
        raise ConfigError(f"--columns chooses among those of the results, as {', '.join(TABULAR)}.")
    comparisons = [comparison.results for comparison in loaded.comparisons]
    titles = {column.title: None for results in comparisons for column in all_columns(results.summaries())}
    for title in columns or ():
        if title not in titles:
            raise ConfigError(unknown_name("column", title, titles))
    if form == "html":
        from polyprune_core.report.page import page

        return page(loaded, arrangement)
    if form in ONE_ONLY and len(comparisons) > 1:
        named = "; ".join(heading(results) for results in comparisons)
        raise ConfigError(
            f"{form} holds one comparison and these stores hold {len(comparisons)} ({named}); "
            "report them one at a time, or as table, markdown, latex or html."
        )
    if form == "json":
        return to_json(comparisons[0], arrangement) + "\n"
    if form == "csv" and show == "results":
        return to_csv(comparisons[0], arrangement)
    if show == "results":
        chosen = PAPER if form == "latex" and columns is None else columns
        sheets = [summary_sheet(results, arrangement, chosen) for results in comparisons]
    else:
        sheets = [sheet for results in comparisons for sheet in SHEETS[show](results, arrangement)]
    if not sheets:
        raise ConfigError(
            f"these cells do not hold what --show {show} needs: they were measured before it was kept. "
            "Give compare a new --output to measure them again."
        )
    if form == "table":
        return _printed(sheets, console)
    if form == "csv":
        return "\n".join(map(csv_table, sheets))
    if form == "latex":
        return "\n\n".join(map(latex_table, sheets)) + "\n"
    titled = len(sheets) > 1
    return (
        "\n\n".join(
            f"## {sheet.title}\n\n{markdown_table(sheet)}" if titled else markdown_table(sheet) for sheet in sheets
        )
        + "\n"
    )


def _printed(sheets: list[Sheet], console: Console | None) -> str:
    terminal = console is not None and console.is_terminal
    width = console.width if console is not None and terminal else PIPED_WIDTH
    out = Console(
        file=io.StringIO(),
        width=width,
        highlight=False,
        force_terminal=terminal,
        no_color=not terminal,
        color_system="standard" if terminal and console is not None and console.color_system else None,
    )
    for sheet in sheets:
        for table in tables(sheet, width):
            out.print(table)
        out.print(Text(""))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text
