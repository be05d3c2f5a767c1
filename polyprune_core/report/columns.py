"""What a row of the summary is called and what its columns say."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyprune_core.errors import counted, plain
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.summaries import Summary

MARKS = {"better": "✓", "worse": "✗", "better before correction": "(✓)", "worse before correction": "(✗)"}
ALIKE = "(=)"
TELL_APART = ("granularity", "scope", "scale")


@dataclass(frozen=True)
class Column:
    """A column of the summary table; `optional` ones appear where there is room."""

    title: str
    text: Callable[[Summary], str]
    optional: bool = False


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
    mean, sd = number(summary.perplexity.mean), summary.perplexity.sd
    if summary.alike:
        return f"{mean} {ALIKE}"
    return mean if sd is None else f"{mean} ± {number(sd, 1) if sd >= 0.05 else f'{sd:.1g}'}"


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
    Column("budget asked → got", budget),
    Column("sparsity asked → got", sparsity),
    Column("perplexity", perplexity),
    Column("against its start", versus),
    Column("n", _count),
    Column("evaluation noise", _evaluation, optional=True),
    Column("p", lambda s: number(s.versus.p if s.versus else None, 3), optional=True),
    Column("q", lambda s: number(s.versus.q if s.versus else None, 3), optional=True),
    Column("Pareto", lambda s: " ".join(s.pareto), optional=True),
    Column("forward tokens", lambda s: short(s.row.forward_tokens), optional=True),
    Column("backward passes", _passes, optional=True),
    Column("non-finite losses", lambda s: str(s.row.non_finite_losses or "")),
    Column("parameters", lambda s: short(s.row.parameters_kept), optional=True),
    Column("KL to dense", lambda s: number(s.row.kl_to_dense, 3), optional=True),
    Column("same top-1", _agreement, optional=True),
    Column("seconds", _seconds, optional=True),
    Column("peak MB", lambda s: number(s.row.peak_memory_mb, 0), optional=True),
)


def columns(summaries: Sequence[Summary]) -> list[Column]:
    """Returns the columns there are: those that every comparison has, and one for each task."""
    return [*COLUMNS, *(Column(task, functools.partial(_accuracy, task=task)) for task in _tasks(summaries))]


def _tasks(summaries: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(task for summary in summaries for task in summary.row.tasks))


def _accuracy(summary: Summary, task: str) -> str:
    scores = summary.row.tasks.get(task)
    return accuracy(scores, next(iter(scores))) if scores else ""


def accuracy(scores: Mapping[str, float], metric: str) -> str:
    """Returns a task's metric with its standard error over items."""
    stderr = scores.get(f"{metric}_stderr")
    return f"{scores[metric]:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


# What a column of text has room for.
PAPER = (
    "budget asked → got",
    "sparsity asked → got",
    "perplexity",
    "against its start",
    "n",
    "evaluation noise",
    "p",
    "q",
    "Pareto",
    "forward tokens",
    "KL to dense",
)


def label(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called; `varied` names the settings that tell rows of this table apart."""
    name = "dense" if row.cell.kind == "dense" else row.cell.initializer or ""
    if row.cell.kind == "start":
        name += " → no search"
    if row.cell.kind == "search":
        name += f" → {row.cell.estimator}"
    notes = [str(getattr(row.cell, key)) for key in TELL_APART if key in varied and getattr(row.cell, key)]
    name += f" + {row.cell.repair}" if row.cell.repaired else ""
    name += " ∇" if row.backward_passes else ""
    return plain(f"{name} ({', '.join(notes)})" if notes else name)


def section(row: Row) -> str:
    """Returns what rows that can be held against each other share: a granularity and a budget."""
    return f"{row.cell.granularity}, {row.cell.asked}"


def varied(results: Results) -> frozenset[str]:
    """Returns the settings that rows of one table differ in."""
    return frozenset(key for key in TELL_APART if len({getattr(row.cell, key) for row in results.rows} - {None}) > 1)


def caption(results: Results) -> str:
    """Returns the conditions that every row of the table shares, and how to read its columns."""
    return " ".join([conditions(results), *(text for _, text in how_to_read(results.summaries()))])


def conditions(results: Results) -> str:
    """Returns what every row of the table shares."""
    model, calibration, evaluation = results.model, results.texts["calibration"], results.texts["evaluation"]
    prunable = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in model["prunable_parameters"].items())
    return plain(
        f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters (prunable: {prunable}), "
        f"{model['dtype']} on {model['device']}. "
        f"Perplexity on {evaluation['name']}: {counted(evaluation['windows'], 'window')} of "
        f"{evaluation['tokens_per_window']}; "
        f"calibrated on {calibration['name']}, {calibration['tokens_per_window']}-token windows."
        f"{_cut(evaluation)}"
    )


def _cut(evaluation: Mapping[str, Any]) -> str:
    """What windows begin with, and how much of them was calibrated on, where there is something to say."""
    bos, shared = evaluation.get("bos"), evaluation.get("overlap") or 0.0
    begun = f" Every window begins with {bos}." if bos else ""
    return begun + (f" {shared:.0%} of what is evaluated on was calibrated on too." if shared >= 0.01 else "")


def how_to_read(summaries: list[Summary]) -> list[tuple[str, str]]:
    """Returns (title of a column, what it says) for the columns that say something."""
    compared = [summary.versus for summary in summaries if summary.versus]
    windows = sorted({found.evaluation.windows for found in compared if found.evaluation})
    said = [("perplexity", "Mean ± sd over n seeds.")]
    if any(summary.alike for summary in summaries):
        said.append(("perplexity", f"{ALIKE}: same for every seed, so that n of them are one measurement."))
    if any(summary.best for summary in summaries):
        at = "budget" if any(summary.row.cell.budget for summary in summaries) else "sparsity"
        said.append(("perplexity", f"Bold: better than every other row at its {at}, beyond the noise."))
    if compared:
        all_of_them = f" over all {len(compared)} of them" if len(compared) > 1 else ""
        text = (
            "Against its start: perplexity ratio to the same metric without search, paired by seed, with the wider "
            "side of its 95 % t interval over seeds: ✓ better, ✗ worse, ~ no difference shown; in brackets where that "
            f"does not hold at a false discovery rate of 5 %{all_of_them}."
        )
        said.append(("against its start", text))
    if windows:
        count = " or ".join(map(str, windows))
        noun = "window" if windows == [1] else "windows"
        text = f"Evaluation noise: its 95 % interval over {count} {noun} of text, the models held fixed."
        said.append(("evaluation noise", text))
    if any(found.p is not None for found in compared):
        said.append(("p", "p: of flipped signs."))
    if any(found.q is not None for found in compared):
        said.append(("q", "q: that rate, from the t tests over seeds."))
    if any(summary.pareto for summary in summaries):
        text = "Pareto: no row has both a lower mean perplexity and fewer parameters (size) or passes (cost)."
        said.append(("Pareto", text))
    if any(summary.row.backward_passes for summary in summaries):
        said.append(("criterion", "∇: needs back-propagation."))
    said += [(task, f"{task}: score ± standard error over items.") for task in _tasks(summaries)]
    return said
