"""Measured rows as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.sheet import Sheet
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row, columns_of_row
from polyprune_core.results.summaries import share

Place = tuple[str, int]
MEASURES = ("perplexity", "nll", "tokens", "kl_to_dense", "top1_agreement", "excess", "share")
FORMULA, NUMBER = re.compile(r"\s*[=+@-]"), re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?[\d.,%± ()]*")


def to_csv(results: Results, arrangement: Arrangement = AS_RUN) -> str:
    """Returns one line a measured row, in the columns of `flat`."""
    head, lines = flat(results, arrangement)
    return written([head, *lines])


def flat(results: Results, arrangement: Arrangement = AS_RUN) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and a line for each measured row.

    The columns are the results schema but the plugins, the headline's excess and share, every measure of every further
    evaluation as `PERPLEXITY on TEXT at LENGTH`, and every metric of every task.
    """
    names = [name for name in columns_of_row() if name not in ("plugins", "tasks", "evaluations")]
    rows = arrangement.rows(results)
    references = {row.id: each.references for each in arrangement.of_seeds(results).summaries() for row in each.rows}
    places = list(dict.fromkeys(each.place for row in rows for each in row.evaluations))
    measures = [(name, place) for place in places for name in (MEASURES if place != places[0] else MEASURES[-2:])]
    scores = dict.fromkeys((task, metric) for row in rows for task in row.tasks for metric in row.tasks[task])
    lines = [
        [
            *(record[name] for name in names),
            *(_measures(row, references.get(row.id, ())).get(each) for each in measures),
            *(row.tasks.get(task, {}).get(metric) for task, metric in scores),
        ]
        for row, record in ((row, row.to_json()) for row in rows)
    ]
    titles = [name if place == places[0] else f"{name} on {place[0]} at {place[1]}" for name, place in measures]
    return [*names, *titles, *(f"{task} {metric}" for task, metric in scores)], lines


def _measures(row: Row, references: Sequence[float | None]) -> dict[tuple[str, Place], Any]:
    """Returns every measure of each of the row's evaluations, by name and place."""
    found: dict[tuple[str, Place], Any] = {}
    for index, each in enumerate(row.evaluations):
        reference = references[index] if index < len(references) else None
        values = {name: getattr(each, name) for name in MEASURES[:-1]} | {"share": share(each, reference)}
        found |= {(name, each.place): value for name, value in values.items()}
    return found


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
