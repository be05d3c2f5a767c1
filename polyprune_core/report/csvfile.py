"""Measured rows as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.sheet import Sheet
from polyprune_core.results.results import Results
from polyprune_core.results.row import columns_of_row


def to_csv(results: Results, arrangement: Arrangement = AS_RUN) -> str:
    """Returns one line a measured row, in the columns of `flat`."""
    head, lines = flat(results, arrangement)
    return _written([head, *lines])


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


def csv_table(sheet: Sheet) -> str:
    """Returns a sheet as shown, without its note; the title of a group comes first in each of its lines."""
    return _written(
        [["group", *sheet.head], *([band.title, *(c.text for c in row)] for band in sheet.bands for row in band.rows)]
    )


def _written(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_safe(value) for value in row] for row in rows])
    return out.getvalue()


def _safe(value: Any) -> Any:
    """Text without what controls a terminal; its line ends stay."""
    if not isinstance(value, str):
        return value
    return "".join(sign if sign.isprintable() or sign == "\n" else " " for sign in value)
