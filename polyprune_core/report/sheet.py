"""A table before it has a form: headings, groups of rows, notes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from polyprune_core.errors import plain
from polyprune_core.report.arrange import AS_RUN, TARGET, Arrangement
from polyprune_core.report.caption import conditions, how_to_read
from polyprune_core.report.columns import Column, budget, columns, sparsity
from polyprune_core.report.naming import label, varied
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary


@dataclass(frozen=True)
class Cell:
    """One printable text; `bold` says that it stands out beyond the noise; `shade` between 0 and 1 is a colour's."""

    text: str
    bold: bool = False
    shade: float | None = None


@dataclass(frozen=True)
class Band:
    """Rows that belong together, under a title if they have one; the first cell of each is its name."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Sheet:
    """`head` names every column, that of the names first; `optional` ones may be left out where room is short.

    `legend` says what the palest and the fullest shade stand for; `about` explains columns by title.
    """

    title: str
    head: tuple[str, ...]
    bands: tuple[Band, ...]
    note: str
    optional: tuple[str, ...] = ()
    legend: tuple[str, str] | None = None
    about: tuple[tuple[str, str], ...] = ()

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The rows of all bands."""
        return [row for band in self.bands for row in band.rows]

    @property
    def caption(self) -> str:
        """The note, and what explains the columns that are there."""
        return " ".join([self.note, *(text for title, text in self.about if title in self.head)]).strip()

    def without(self, titles: Sequence[str]) -> Sheet:
        """Returns the sheet without some columns."""
        kept = [index for index, title in enumerate(self.head) if title not in titles]
        bands = (Band(b.title, tuple(tuple(row[i] for i in kept) for row in b.rows)) for b in self.bands)
        return dataclasses.replace(self, head=tuple(self.head[i] for i in kept), bands=tuple(bands))


def summary_sheet(results: Results, arrangement: Arrangement = AS_RUN, titles: Sequence[str] | None = None) -> Sheet:
    """Returns the summary over seeds: the columns `titles`, or all not on request, without those that say nothing."""
    groups = arrangement.groups(results)
    summaries = [summary for _, group in groups for summary in group]
    asked = [c for c in columns(summaries) if (not c.on_request if titles is None else c.title in titles)]
    chosen = [c for c in asked if any(map(c.text, summaries))]
    differs = varied(results)
    bands = (Band(title, tuple(_row(s, differs, chosen) for s in group)) for title, group in groups)
    head = ("criterion", *(column.title for column in chosen))
    optional = tuple(column.title for column in chosen if column.optional)
    if arrangement.group_by in TARGET:
        optional += tuple(column.title for column in chosen if column.text in (budget, sparsity))
    about = tuple(how_to_read(arrangement.of_seeds(results).summaries(), summaries))
    return Sheet(heading(results), head, tuple(bands), conditions(results), optional, about=about)


def heading(results: Results) -> str:
    """Returns what a comparison is called: the model and the text it was evaluated on."""
    return plain(f"{results.model['name']} on {results.texts['evaluation']['name']}")


def _row(summary: Summary, differs: frozenset[str], columns: Sequence[Column]) -> tuple[Cell, ...]:
    cells = (Cell(plain(c.text(summary)), bold=summary.best and c.title == "perplexity") for c in columns)
    return (Cell(label(summary.row, differs)), *cells)
