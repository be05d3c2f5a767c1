"""Tables and lines for a terminal."""

from __future__ import annotations

import dataclasses
import io
import shutil

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from polyprune_core.errors import plain
from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.columns import number
from polyprune_core.report.naming import TELL_APART, label
from polyprune_core.report.sheet import Sheet, summary_sheet
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row

PIPED_WIDTH = 160
WIDE = Console(width=10_000)
NARROWEST = 16


def line(row: Row, varied: frozenset[str] = frozenset(TELL_APART)) -> str:
    """Returns one finished cell as one line of console markup; `varied` names the settings that tell rows apart."""
    asked = "" if row.cell.target is None else f", {escape(row.cell.asked)}"
    where = asked + ("" if row.cell.seed is None else f", seed {row.cell.seed}")
    outcome = f"perplexity {number(row.perplexity)}"
    if row.status != "ok":
        outcome = f"[red]failed:[/] {escape(plain(row.error or ''))}"
    return f"{escape(label(row, varied))}{where}: {outcome}"


def table(results: Results, width: int, arrangement: Arrangement = AS_RUN) -> Table:
    """Returns the summary as a rich table that fits `width` columns."""
    return fitted(dataclasses.replace(summary_sheet(results, arrangement), title=""), width)


def drawn(grid: Table, width: int) -> str:
    """Returns a rich table as plain text of at most `width` columns, in a notebook too."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, force_terminal=False, force_jupyter=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def shown_width() -> int:
    """Returns the columns of the terminal, or where there is none `PIPED_WIDTH`."""
    return shutil.get_terminal_size((PIPED_WIDTH, 24)).columns


def tables(sheet: Sheet, width: int) -> list[Table]:
    """Returns a sheet as tables that fit `width` columns: one, or several where no column is optional."""
    grid = fitted(sheet, width)
    columns = sheet.head[1:]
    if sheet.optional or len(columns) < 2 or _least(grid) <= width:
        return [grid]
    half = len(columns) // 2
    first, second = sheet.without(columns[half:]), sheet.without(columns[:half])
    first, second = dataclasses.replace(first, note=""), dataclasses.replace(second, title="")
    return [*tables(first, width), *tables(second, width)]


def fitted(sheet: Sheet, width: int) -> Table:
    """Returns a rich table; optional columns go, the last first, until `width` columns are enough.

    Where none is left to go, long names are broken into lines, and then the columns beside them go too, all but the
    first. The caption explains the columns that stand there, and names those that do not.
    """
    for kept in range(len(sheet.optional), -1, -1):
        shown = sheet.without(sheet.optional[kept:])
        grid = _grid(shown)
        if _least(grid) <= width:
            break
    spare = list(shown.head[2:]) if sheet.optional else []
    while (excess := _least(grid) - width) > 0:
        grid = _grid(shown, max(NARROWEST, _widest_name(shown) - excess))
        if _least(grid) <= width or not spare:
            break
        shown = shown.without([spare.pop()])
        grid = _grid(shown)
    left_out = [title for title in sheet.head if title not in shown.head]
    named = f"Not shown, for want of room: {', '.join(left_out)}." if left_out else ""
    caption = " ".join(filter(None, [shown.caption, named]))
    grid.title = Text(sheet.title, style="bold") if sheet.title else None
    grid.caption = Text(caption) if caption else None
    return grid


def _least(grid: Table) -> int:
    return Measurement.get(WIDE, WIDE.options, grid).minimum


def _widest_name(sheet: Sheet) -> int:
    return max(map(len, (sheet.head[0], *(row[0].text for row in sheet.rows), *(band.title for band in sheet.bands))))


def _grid(sheet: Sheet, for_names: int | None = None) -> Table:
    """The table of a sheet, whose names get `for_names` columns, or as many as the longest takes."""
    grid = Table(
        title_justify="left",
        caption_justify="left",
        header_style="bold",
        pad_edge=False,
        collapse_padding=True,
        box=SIMPLE_HEAD,
    )
    (name, *_), *columns = zip(sheet.head, *([cell.text for cell in row] for row in sheet.rows), strict=True)
    grid.add_column(escape(name), width=for_names or _widest_name(sheet), no_wrap=for_names is None)
    for head, *texts in columns:
        widest = max(map(len, (*texts, *head.split())))
        grid.add_column(escape(head), justify="right", width=widest)
    for band in sheet.bands:
        if band.title:
            grid.add_row(Text(band.title, style="italic"))
        for index, row in enumerate(band.rows):
            cells = (Text(cell.text, style="bold" if cell.bold else "") for cell in row)
            grid.add_row(*cells, end_section=index == len(band.rows) - 1 and band is not sheet.bands[-1])
    return grid
