"""What the columns of the summary say."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyprune_core.results.statistics import Sample
from polyprune_core.results.summaries import Summary

MARKS = {"better": "✓", "worse": "✗", "better before correction": "(✓)", "worse before correction": "(✗)"}
ALIKE = "(=)"


@dataclass(frozen=True)
class Column:
    """A column of the summary table.

    `optional` ones appear where there is room, those `on_request` where their title is asked for, and those `on_paper`
    where a page has no room for all.
    """

    title: str
    text: Callable[[Summary], str]
    optional: bool = False
    on_paper: bool = False
    on_request: bool = False


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number short enough for a table."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "inf"
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def short(count: int | None) -> str:
    """Returns a count with its thousands or millions as a letter, nothing for none."""
    if not count:
        return ""
    if count < 1000:
        return str(count)
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


def sparsity(summary: Summary) -> str:
    """Returns the sparsity asked for, unless it was a budget, and the one achieved."""
    row = summary.row
    if row.cell.kind == "dense":
        return ""
    achieved = "?" if row.sparsity_achieved is None else f"{row.sparsity_achieved:.3f}"
    return achieved if row.cell.sparsity is None else f"{row.cell.sparsity:g} → {achieved}"


def budget(summary: Summary) -> str:
    """Returns the budget asked for, unless it was a sparsity, and what was achieved of it."""
    row = summary.row
    if row.cell.budget is None or row.cell.target is None:
        return ""
    achieved = "?" if row.budget_achieved is None else row.cell.target.words(row.budget_achieved)
    return f"{row.cell.budget} → {achieved}"


def perplexity(summary: Summary) -> str:
    """Returns mean ± standard deviation over seeds, or that all seeds gave the same."""
    if summary.perplexity is None:
        return "failed"
    return f"{number(summary.perplexity.mean)} {ALIKE}" if summary.alike else _spread(summary.perplexity)


def _spread(found: Sample) -> str:
    mean, sd = number(found.mean), found.sd
    return mean if sd is None else f"{mean} ± {number(sd, 1) if sd >= 0.05 else f'{sd:.1g}'}"


def _excess(summary: Summary) -> str:
    if not summary.row.evaluations or summary.row.cell.is_reference:
        return ""
    return number(summary.row.evaluations[0].excess, 3)


def _share(summary: Summary, index: int) -> str:
    share = summary.shares[index] if index < len(summary.shares) else None
    return "" if share is None or summary.row.cell.is_reference else f"{share:.0%}"


def _further(summary: Summary, place: tuple[str, int]) -> str:
    for each, spread in zip(summary.row.evaluations, summary.perplexities, strict=True):
        if each.place == place and spread is not None:
            return _spread(spread)
    return ""


def versus(summary: Summary) -> str:
    """Returns the ratio to the row's own start, the wider side of its interval over seeds, and the verdict's mark."""
    found = summary.versus
    if found is None:
        return ""
    if found.ci95 is None:
        return f"×{found.ratio:.3f}"
    return f"×{found.ratio:.3f} ±{_wider(found.ratio, found.ci95):.3f} {MARKS.get(found.verdict, '~')}"


def _wider(ratio: float, interval: tuple[float, float]) -> float:
    return max(interval[1] - ratio, ratio - interval[0])


def _evaluation(summary: Summary) -> str:
    found = summary.versus
    return f"±{_wider(found.ratio, found.evaluation.ci95):.3f}" if found and found.evaluation else ""


def _count(summary: Summary) -> str:
    done = len(summary.rows)
    return f"{done} of {done + summary.failed}" if summary.failed else str(done)


def _passes(summary: Summary) -> str:
    return str(summary.row.backward_passes or "")


def _agreement(summary: Summary) -> str:
    return "" if summary.row.top1_agreement is None else f"{summary.row.top1_agreement:.1%}"


def _seconds(summary: Summary) -> str:
    return number(summary.row.search_seconds, 0) if summary.row.search_seconds else ""


COLUMNS = (
    Column("budget asked → got", budget, on_paper=True),
    Column("sparsity asked → got", sparsity, on_paper=True),
    Column("perplexity", perplexity, on_paper=True),
    Column("against its start", versus, on_paper=True),
    Column("n", _count, on_paper=True),
    Column("excess", _excess, optional=True, on_paper=True),
    Column("share", lambda s: _share(s, 0), on_request=True),
    Column("evaluation noise", _evaluation, optional=True, on_paper=True),
    Column("p", lambda s: number(s.versus.p if s.versus else None, 3), optional=True, on_paper=True),
    Column("q", lambda s: number(s.versus.q if s.versus else None, 3), optional=True, on_paper=True),
    Column("Pareto", lambda s: " ".join(s.pareto), optional=True, on_paper=True),
    Column("forward tokens", lambda s: short(s.row.forward_tokens), optional=True, on_paper=True),
    Column("backward passes", _passes, optional=True),
    Column("non-finite losses", lambda s: str(s.row.non_finite_losses or "")),
    Column("parameters", lambda s: short(s.row.parameters_kept), optional=True),
    Column("active", lambda s: short(s.row.active_parameters) if s.row.active_parameters else "", optional=True),
    Column("KL to dense", lambda s: number(s.row.kl_to_dense, 3), optional=True, on_paper=True),
    Column("same top-1", _agreement, optional=True),
    Column("seconds", _seconds, optional=True),
    Column("peak MB", lambda s: number(s.row.peak_memory_mb, 0), optional=True),
)


def columns(summaries: Sequence[Summary]) -> list[Column]:
    """Returns the columns there are: those that every comparison has, those of further evaluations, and the tasks'."""
    after = 1 + next(index for index, column in enumerate(COLUMNS) if column.title == "share")
    tasks = [Column(task, functools.partial(_accuracy, task=task)) for task in task_names(summaries)]
    return [*COLUMNS[:after], *_columns_of_further(summaries), *COLUMNS[after:], *tasks]


def _columns_of_further(summaries: Sequence[Summary]) -> Iterator[Column]:
    """Perplexity, and on request the share, of every evaluation but the headline."""
    for index, place in enumerate(places(summaries)[1:], 1):
        where = " at ".join(map(str, place)).replace(",", " ")
        text = functools.partial(_further, place=place)
        yield Column(f"perplexity on {where}", text, optional=True, on_paper=True)
        yield Column(f"share on {where}", functools.partial(_share, index=index), on_request=True)


def places(summaries: Sequence[Summary]) -> list[tuple[str, int]]:
    """Returns the (text, window length) of all evaluations, the headline first."""
    return list(dict.fromkeys(each.place for summary in summaries for each in summary.row.evaluations))


def task_names(summaries: Sequence[Summary]) -> list[str]:
    """Returns the tasks that a row has been measured on, each once."""
    return list(dict.fromkeys(task for summary in summaries for task in summary.row.tasks))


def _accuracy(summary: Summary, task: str) -> str:
    scores = summary.row.tasks.get(task)
    return accuracy(scores, next(iter(scores))) if scores else ""


def accuracy(scores: Mapping[str, float], metric: str) -> str:
    """Returns a task's metric with its standard error over items."""
    stderr = scores.get(f"{metric}_stderr")
    return f"{scores[metric]:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def on_paper(summaries: Sequence[Summary]) -> list[str]:
    """Returns the titles of the columns that a page has room for."""
    return [column.title for column in columns(summaries) if column.on_paper]
