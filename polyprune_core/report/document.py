"""A whole report as one text: every comparison of the stores, in the form and with the table asked for."""

from __future__ import annotations

import dataclasses
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from polyprune_core.errors import ConfigError, unknown_name
from polyprune_core.report.agreement import agreement_sheets
from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.columns import columns as all_columns
from polyprune_core.report.columns import on_paper
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
from polyprune_core.results.summaries import Summary


@dataclass(frozen=True)
class Asked:
    """What of the stores is written: the arguments of `document`."""

    show: str = "results"
    arrangement: Arrangement = AS_RUN
    columns: Sequence[str] | None = None
    console: Console | None = None


SHOWN: dict[str, Callable[[Results, Asked], list[Sheet]]] = {
    "results": lambda results, asked: [summary_sheet(results, asked.arrangement, asked.columns)],
    "cost": lambda results, asked: [cost_sheet(results, asked.arrangement)],
    "kept": lambda results, asked: kept_sheets(results, asked.arrangement),
    "agreement": lambda results, asked: agreement_sheets(results, asked.arrangement),
}


class Form(ABC):
    """How a report is written: `check` refuses what the form cannot hold, `write` returns the text."""

    def check(self, loaded: Loaded, asked: Asked) -> None:
        """Raises ConfigError where the form does not hold what is asked."""
        if asked.columns is not None:
            raise ConfigError(COLUMNS_OF_RESULTS)

    @abstractmethod
    def write(self, loaded: Loaded, asked: Asked) -> str:
        """Returns the report; raises ConfigError where the stores do not hold what is asked for."""


class Sheets(Form):
    """Every sheet of every comparison, one below another."""

    def columns(self, summaries: Sequence[Summary]) -> Sequence[str] | None:
        """Returns the titles of the columns unless told, None for those that fit."""

    def check(self, loaded: Loaded, asked: Asked) -> None:
        if asked.columns is not None and asked.show != "results":
            raise ConfigError(COLUMNS_OF_RESULTS)
        titles = [column.title for column in all_columns(_summaries(loaded))]
        for title in asked.columns or ():
            if title not in titles:
                raise ConfigError(unknown_name("column", title, titles))

    def write(self, loaded: Loaded, asked: Asked) -> str:
        chosen = self.columns(_summaries(loaded)) if asked.columns is None else asked.columns
        return self.joined(_sheets(loaded, dataclasses.replace(asked, columns=chosen)), asked.console)

    @abstractmethod
    def joined(self, sheets: Sequence[Sheet], console: Console | None) -> str:
        """Returns the sheets as one text."""


class Table(Sheets):
    """Tables for a terminal."""

    def joined(self, sheets: Sequence[Sheet], console: Console | None) -> str:
        terminal = console is not None and console.is_terminal
        width = console.width if console is not None and terminal else PIPED_WIDTH
        file = io.StringIO()
        out = Console(
            file=file,
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
        return file.getvalue()


class Markdown(Sheets):
    """Markdown tables, under headings where there are several."""

    def joined(self, sheets: Sequence[Sheet], console: Console | None) -> str:
        headed = len(sheets) > 1
        texts = (
            f"## {sheet.title}\n\n{markdown_table(sheet)}" if headed else markdown_table(sheet) for sheet in sheets
        )
        return "\n\n".join(texts) + "\n"


class Latex(Sheets):
    """LaTeX tables, of the columns that a page has room for."""

    def columns(self, summaries: Sequence[Summary]) -> Sequence[str]:
        return on_paper(summaries)

    def joined(self, sheets: Sequence[Sheet], console: Console | None) -> str:
        return "\n\n".join(map(latex_table, sheets)) + "\n"


class Csv(Form):
    """Measured rows, or a sheet as it is shown."""

    def check(self, loaded: Loaded, asked: Asked) -> None:
        super().check(loaded, asked)
        _check_one(loaded, "csv")

    def write(self, loaded: Loaded, asked: Asked) -> str:
        if asked.show == "results":
            return to_csv(loaded.comparisons[0].results, asked.arrangement)
        sheets = _sheets(loaded, asked)
        return "\n".join(csv_table(sheet, titled=len(sheets) > 1) for sheet in sheets)


class Json(Form):
    """The results of schema 1."""

    def check(self, loaded: Loaded, asked: Asked) -> None:
        if asked.show != "results":
            raise ConfigError(f"json holds the results; give --show {asked.show} with table, markdown, latex or csv.")
        super().check(loaded, asked)
        _check_one(loaded, "json")

    def write(self, loaded: Loaded, asked: Asked) -> str:
        return to_json(loaded.comparisons[0].results, asked.arrangement) + "\n"


class Html(Form):
    """One page that shows everything."""

    def write(self, loaded: Loaded, asked: Asked) -> str:
        from polyprune_core.report.page import page

        return page(loaded, asked.arrangement)


FORMS: dict[str, Form] = {
    "table": Table(),
    "markdown": Markdown(),
    "csv": Csv(),
    "latex": Latex(),
    "json": Json(),
    "html": Html(),
}
COLUMNS_OF_RESULTS = (
    "--columns is about --show results as table, markdown or latex only; leave it out, or ask for one of these."
)


def document(
    loaded: Loaded,
    form: str,
    show: str = "results",
    arrangement: Arrangement = AS_RUN,
    columns: Sequence[str] | None = None,
    console: Console | None = None,
) -> str:
    """Returns the report in one of FORMS; `show` is one of SHOWN, `columns` are titles, or None for those that fit.

    A table is as wide as `console` and has its colours if that is a terminal.

    Raises:
        ConfigError: the form holds one comparison and there are several, or no such table; a column is unknown; or the
            stores do not hold what is asked for.
    """
    asked = Asked(show, arrangement, columns, console)
    FORMS[form].check(loaded, asked)
    return FORMS[form].write(loaded, asked)


def _check_one(loaded: Loaded, form: str) -> None:
    count = len(loaded.comparisons)
    if count > 1:
        named = "; ".join(heading(comparison.results) for comparison in loaded.comparisons)
        raise ConfigError(
            f"{form} holds one comparison and these stores hold {count} ({named}); "
            "report them one at a time, or as table, markdown, latex or html."
        )


def _summaries(loaded: Loaded) -> list[Summary]:
    return [summary for each in loaded.comparisons for summary in each.results.summaries()]


def _sheets(loaded: Loaded, asked: Asked) -> list[Sheet]:
    comparisons = [comparison.results for comparison in loaded.comparisons]
    sheets = [sheet for results in comparisons for sheet in SHOWN[asked.show](results, asked)]
    if sheets:
        return sheets
    if any(map(_holds_no_choices, comparisons)):
        raise ConfigError(
            f"these cells do not hold what --show {asked.show} needs: they were measured before it was kept. "
            "Give compare a new --output to measure them again."
        )
    raise ConfigError(
        "there is nothing to show: --show kept needs a pruned row, --show agreement two of one granularity and budget. "
        "Filter less, or name more stores."
    )


def _holds_no_choices(results: Results) -> bool:
    done = [row for row in results.rows if row.status == "ok" and row.cell.kind != "dense"]
    return any((found := results.details.get(row.id)) is None or found.keep is None for row in done)
