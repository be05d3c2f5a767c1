"""What each criterion kept of each layer."""

from __future__ import annotations

import dataclasses
import itertools

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.columns import number
from polyprune_core.report.naming import label, section, varied
from polyprune_core.report.sheet import Band, Cell, Sheet
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary

Layers = dict[str, dict[int, list[tuple[int, int]]]]


def kept_sheets(results: Results, arrangement: Arrangement = AS_RUN) -> list[Sheet]:
    """Returns for each granularity, budget and kind the units kept by criterion (rows) and layer (columns).

    Counts are means over seeds; `shade` runs from the smallest fraction of the table to the largest. Rows without
    stored choices are left out.
    """
    differs = varied(results)
    bands: dict[str, list[tuple[Cell, ...]]] = {}
    layers: dict[str, dict[int, int]] = {}
    shown = itertools.chain.from_iterable(group for _, group in arrangement.groups(results))
    for summary in shown:
        for kind, counts in _kept(results, summary).items():
            title = f"Units kept, {kind}, {section(summary.row)}"
            layers.setdefault(title, {}).update({layer: pairs[0][1] for layer, pairs in counts.items()})
            cells = (_cell(pairs) for _, pairs in sorted(counts.items()))
            bands.setdefault(title, []).append((Cell(label(summary.row, differs)), *cells))
    return [_sheet(title, rows, layers[title]) for title, rows in bands.items()]


def _sheet(title: str, rows: list[tuple[Cell, ...]], there: dict[int, int]) -> Sheet:
    fractions = [cell.shade or 0.0 for row in rows for cell in row[1:]]
    lowest, highest = min(fractions), max(fractions)
    room = highest - lowest or 1.0
    stretched = tuple(
        (name, *(dataclasses.replace(cell, shade=((cell.shade or 0.0) - lowest) / room) for cell in cells))
        for name, *cells in rows
    )
    counts = sorted(set(there.values()))
    each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = f"Each column is a decoder layer of {each} units. Means over seeds."
    return Sheet(
        title,
        ("criterion", *map(str, sorted(there))),
        (Band("", stretched),),
        note,
        legend=(f"{lowest:.0%}", f"{highest:.0%}"),
    )


def _kept(results: Results, summary: Summary) -> Layers:
    """Returns for every kind and layer (kept, there) of each seed."""
    found: Layers = {}
    for row in summary.rows:
        details = results.details.get(row.id)
        for kind, counts in (details.kept() if details else {}).items():
            for layer, kept, there in counts:
                found.setdefault(kind, {}).setdefault(layer, []).append((kept, there))
    return found


def _cell(pairs: list[tuple[int, int]]) -> Cell:
    kept = sum(kept for kept, _ in pairs) / len(pairs)
    return Cell(number(kept, 0 if kept.is_integer() else 1), shade=kept / pairs[0][1])
