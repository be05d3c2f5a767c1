"""Measured rows as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.sheet import Sheet
from polyprune_core.results.results import Results
from polyprune_core.results.row import columns_of_row

FORMULA, NUMBER = re.compile(r"\s*[=+@-]"), re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?[\d.,%± ()]*")


def to_csv(results: Results, arrangement: Arrangement = AS_RUN) -> str:
    """Returns one line a measured row, in the columns of `flat`."""
    head, lines = flat(results, arrangement)
    return written([head, *lines])


def flat(results: Results, arrangement: Arrangement = AS_RUN) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and a line for each measured row.

    The columns are the results schema but the plugins, and every metric of every task.
    """
    names = [name for name in columns_of_row() if name not in ("plugins", "tasks")]
    rows = arrangement.rows(results)
    scores = dict.fromkeys((task, metric) for row in rows for task in row.tasks for metric in row.tasks[task])
    lines = [
        [*(record[name] for name in names), *(record["tasks"].get(task, {}).get(metric) for task, metric in scores)]
        for record in (row.to_json() for row in rows)
    ]
    return [*names, *(f"{task} {metric}" for task, metric in scores)], lines


def csv_table(sheet: Sheet, titled: bool = False) -> str:
    """Returns a sheet as shown, without its note; the title of a group comes first in each of its lines.

    `titled`: where a group has none, that of the sheet.
    """
    lines = [["group", *sheet.head]]
    for band in sheet.bands:
        title = band.title or (sheet.title if titled else "")
        lines += [[title, *(cell.text for cell in row)] for row in band.rows]
    return written(lines)


def written(rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows as CSV whose text controls no terminal and is no formula of a spreadsheet."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_safe(value) for value in row] for row in rows])
    return out.getvalue()


def _safe(value: Any) -> Any:
    """Text without what controls a terminal; its line ends stay. What a spreadsheet would compute gets a quote."""
    if not isinstance(value, str):
        return value
    text = "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in value)
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text
