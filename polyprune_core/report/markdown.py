"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.sheet import Cell, Sheet, summary_sheet
from polyprune_core.results.results import Results

# What would end a cell, open a tag or set type; "_" inside a word is no emphasis and stays.
SIGNS = re.compile(r"[\\|`*<>\[\]]|(?<!\w)_|_(?!\w)")


def markdown(results: Results, titles: Sequence[str] | None = None, arrangement: Arrangement = AS_RUN) -> str:
    """Returns the summary as a Markdown table with its conditions below; of the columns `titles`, or of all."""
    return markdown_table(summary_sheet(results, arrangement, titles))


def markdown_table(sheet: Sheet) -> str:
    """Returns a sheet as a Markdown table and its note; groups have a row for their title."""
    lines = [_line(map(escape, sheet.head)), "|---" + "|---:" * (len(sheet.head) - 1) + "|"]
    for band in sheet.bands:
        if band.title:
            lines.append(_line([f"*{escape(band.title)}*", *[""] * (len(sheet.head) - 1)]))
        lines += [_line(map(_text, row)) for row in band.rows]
    return "\n".join([*lines, "", escape(sheet.caption)])


def escape(text: str) -> str:
    """Returns a text that Markdown shows as it is."""
    return SIGNS.sub(lambda found: f"\\{found[0]}", text)


def _text(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.bold else escape(cell.text)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
