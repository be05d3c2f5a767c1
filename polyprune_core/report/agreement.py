"""Which criteria choose the same units: Kendall's tau of their scores, Jaccard index of what they keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.naming import label, section, varied
from polyprune_core.report.sheet import Band, Cell, Sheet
from polyprune_core.results.cell_file import Details
from polyprune_core.results.results import Results
from polyprune_core.results.statistics import chance_overlap, overlap, rank_agreement
from polyprune_core.results.summaries import Summary

# Tau of more units than this is that of this many, evenly spaced.
UNITS = 20_000
Measure = Callable[[Details, Details], float | None]


def agreement_sheets(results: Results, arrangement: Arrangement = AS_RUN) -> list[Sheet]:
    """Returns for each granularity and budget a matrix of tau for each kind of unit, and one of the Jaccard index.

    Entries are means over the seeds that two rows share; the diagonal compares the seeds of one row with each other.
    Rows without stored scores are left out.
    """
    sections: dict[str, list[Summary]] = {}
    for _, group in arrangement.groups(results):
        for summary in group:
            if any(_scored(results.details.get(row.id)) for row in summary.rows):
                sections.setdefault(section(summary.row), []).append(summary)
    return [
        sheet
        for where, summaries in sections.items()
        if len(summaries) > 1
        for sheet in _matrices(results, summaries, where)
    ]


def _matrices(results: Results, summaries: Sequence[Summary], where: str) -> list[Sheet]:
    names = [label(summary.row, varied(results)) for summary in summaries]
    details = [
        {row.cell.seed: found for row in summary.rows if _scored(found := results.details.get(row.id)) and found}
        for summary in summaries
    ]
    groups = next(iter(details[0].values())).groups
    kinds = tuple(dict.fromkeys(group.kind for group in groups))
    sheets = []
    for kind in kinds:
        units = np.flatnonzero(next(iter(details[0].values())).of_kind(kind))
        units = units[:: -(-len(units) // UNITS)]
        if len(units) > 1:
            note = f"Kendall's tau of the scores of {len(units):,} units of kind {kind}. {DIAGONAL}"
            sheets.append(_matrix(f"Rank agreement, {kind}, {where}", names, details, _tau(units), note))
    kept = float(np.mean([found.keep.mean() for row in details for found in row.values() if found.keep is not None]))
    note = f"Jaccard index of the units kept; two random choices of as many have {chance_overlap(kept, kept):.2f}."
    sheets.append(_matrix(f"Overlap of kept units, {where}", names, details, _jaccard, f"{note} {DIAGONAL}"))
    return sheets


DIAGONAL = "Means over seeds. The diagonal compares the seeds of one row with each other."


def _matrix(
    title: str, names: Sequence[str], details: Sequence[dict[int | None, Details]], measure: Measure, note: str
) -> Sheet:
    """Rows have a number and a name; columns have the number only, to stay narrow."""
    size = range(len(names))
    values = {
        (i, j): _mean(measure(one, other) for one, other in _pairs(details[i], details[j], same=i == j))
        for i, j in itertools.combinations_with_replacement(size, 2)
    }
    rows = tuple((Cell(f"{i + 1} {names[i]}"), *(_cell(values[min(i, j), max(i, j)]) for j in size)) for i in size)
    return Sheet(title, ("criterion", *(str(i + 1) for i in size)), (Band("", rows),), note)


def _cell(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{round(value, 2) + 0.0:.2f}", shade=max(0.0, value))


def _pairs(
    one: dict[int | None, Details], other: dict[int | None, Details], same: bool
) -> Iterable[tuple[Details, Details]]:
    if same:
        return itertools.combinations(one.values(), 2)
    return ((one[seed], other[seed]) for seed in one.keys() & other.keys())


def _tau(units: NDArray[np.intp]) -> Measure:
    def tau(one: Details, other: Details) -> float | None:
        if one.scores is None or other.scores is None or one.groups != other.groups:
            return None
        return rank_agreement(one.scores[units], other.scores[units])

    return tau


def _jaccard(one: Details, other: Details) -> float | None:
    if one.keep is None or other.keep is None or one.groups != other.groups:
        return None
    return overlap(one.keep, other.keep)


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _scored(details: Details | None) -> bool:
    return details is not None and details.scores is not None and details.keep is not None
