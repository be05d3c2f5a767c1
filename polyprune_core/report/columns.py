"""What a row of the summary is called and what its columns say."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyprune_core.config.cell import AUTO, Cell
from polyprune_core.config.settings import Settings
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import counted, plain
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.statistics import Sample
from polyprune_core.results.summaries import Summary

MARKS = {"better": "✓", "worse": "✗", "better before correction": "(✓)", "worse before correction": "(✗)"}
ALIKE = "(=)"
TELL_APART = ("granularity", "scope", "scale", "shapes")
POOLING = ("scope", "scale")


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
    tasks = [Column(task, functools.partial(_accuracy, task=task)) for task in _tasks(summaries)]
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


def _tasks(summaries: Sequence[Summary]) -> list[str]:
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


def label(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called; `varied` names the settings that tell rows of this table apart.

    A pooling that was chosen is always told, after `auto:` where others of the table were given.
    """
    name = "dense" if row.cell.kind == "dense" else row.cell.initializer or ""
    if row.cell.kind == "start":
        name += " → no search"
    if row.cell.kind == "search":
        name += f" → {row.cell.estimator}"
    notes = [note for key in TELL_APART if (note := _note(row, key, varied))]
    name += f" + {row.cell.repair}" if row.cell.repaired else ""
    name += " ∇" if row.backward_passes else ""
    return plain(f"{name} ({', '.join(notes)})" if notes else name)


def criterion(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called beside those of other budgets, where other poolings may have been chosen."""
    return label(dataclasses.replace(row, scope_chosen=None, scale_chosen=None), varied)


def _note(row: Row, key: str, varied: frozenset[str]) -> str:
    chosen = getattr(row, f"{key}_chosen", None)
    if chosen:
        return f"auto: {chosen}" if f"{AUTO} {key}" in varied else chosen
    asked = getattr(row.cell, key)
    return str(asked) if asked and key in varied else ""


def section(row: Row) -> str:
    """Returns what rows that can be held against each other share: a granularity and a budget."""
    return f"{row.cell.granularity}, {row.cell.asked}"


def varied(results: Results) -> frozenset[str]:
    """Returns the settings that rows of one table differ in."""
    return told_apart([row.cell for row in results.rows])


def told_apart(cells: Sequence[Cell]) -> frozenset[str]:
    """Returns the settings that the cells of one table differ in; "auto scope" where a metric's was given too."""
    found = {key for key in TELL_APART if len({getattr(cell, key) for cell in cells} - {None}) > 1}
    if len({cell.shapes for cell in cells if cell.kind != "dense"}) > 1:
        found.add("shapes")
    for key in POOLING:
        asked = {getattr(cell, key) for cell in cells if cell.kind == "baseline"}
        found |= {f"{AUTO} {key}"} if AUTO in asked and len(asked) > 1 else set()
    return frozenset(found)


def caption(results: Results) -> str:
    """Returns the conditions that every row of the table shares, and how to read its columns."""
    hidden = _on_request(results.summaries())
    said = (text for title, text in how_to_read(results.summaries()) if title not in hidden)
    return " ".join([conditions(results), *said])


def conditions(results: Results) -> str:
    """Returns what every row of the table shares."""
    model, calibration, evaluation = results.model, results.texts["calibration"], results.texts["evaluation"]
    prunable = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in model["prunable_parameters"].items())
    prunable = f" (prunable: {prunable})" if prunable else ""
    return plain(
        f"{model['name']}{_weights(model)}, {model['parameters'] / 1e6:.1f} M parameters{prunable}, "
        f"{model['dtype']} on {model['device']}. "
        f"Perplexity on {'; on '.join(map(_cut_up, results.texts.get('evaluations') or [evaluation]))}; "
        f"calibrated on {calibration['name']}, {calibration['tokens_per_window']}-token windows."
        f"{_cut(evaluation)}{_widths(results)}{_quick(results)}"
    )


def _quick(results: Results) -> str:
    """How much less a quick look is than what is taken unless told."""
    if results.config.get("preset") != "quick":
        return ""
    usual = Settings.model_fields["steps"].default
    searched = any(row.cell.kind == "search" for row in results.rows)
    shorter = (
        f"searches take {results.config['steps']} steps instead of {usual}, which find more, and " if searched else ""
    )
    return f" A quick look: {shorter}a part of the text is evaluated on. Leave out --preset quick for all of it."


def _widths(results: Results) -> str:
    """The widths that all rows of the table were asked to have, where there are such."""
    asked = {row.cell.shapes for row in results.rows if row.cell.kind != "dense"}
    told = asked.pop() if len(asked) == 1 else None
    return f" Widths of layers: {ShapesSpec.parse(told).words()}." if told else ""


def _cut_up(text: Mapping[str, Any]) -> str:
    return f"{text['name']}: {counted(text['windows'], 'window')} of {text['tokens_per_window']}"


def _weights(model: Mapping[str, Any]) -> str:
    """Which weights they are that go by this name, as far as that is known."""
    sha256 = f"weights sha256 {model['sha256'][:8]}…" if model.get("sha256") else ""
    told = "; ".join(filter(None, (model.get("source"), sha256)))
    return f" ({told})" if told else ""


def _cut(evaluation: Mapping[str, Any]) -> str:
    """What windows begin with, and how much of them was calibrated on, where there is something to say."""
    bos, shared = evaluation.get("bos"), evaluation.get("overlap") or 0.0
    begun = f" Every window begins with {bos}." if bos else ""
    return begun + (f" {shared:.0%} of what is evaluated on was calibrated on too." if shared >= 0.01 else "")


def _on_request(summaries: Sequence[Summary]) -> list[str]:
    return [column.title for column in columns(summaries) if column.on_request]


def how_to_read(summaries: list[Summary], shown: Sequence[Summary] | None = None) -> list[tuple[str, str]]:
    """Returns (title of a column, what it says) for the columns that say something.

    `summaries` are those of the whole comparison; marks are explained where one of those `shown` has them.
    """
    shown = summaries if shown is None else shown
    compared = [summary.versus for summary in summaries if summary.versus]
    windows = sorted({found.evaluation.windows for found in compared if found.evaluation})
    said = [("perplexity", "Mean ± sd over n seeds.")]
    if any(summary.alike for summary in shown):
        said.append(("perplexity", f"{ALIKE}: same for every seed, so the n rows are one measurement."))
    if any(summary.best for summary in shown):
        at = "budget" if any(summary.row.cell.budget for summary in summaries) else "sparsity"
        said.append(("perplexity", f"Bold: better than every other row at its {at}, beyond the noise."))
    if places(summaries):
        said.append(("excess", "Excess: nats per token over the dense model."))
    shares = "the excess as a fraction of that of the best metric alone without repair"
    said += [(title, f"{title.capitalize()}: {shares}.") for title in _on_request(summaries)]
    if compared:
        all_of_them = f" over all {len(compared)} of them" if len(compared) > 1 else ""
        text = (
            "Against its start: the perplexity of a search divided by that of the policy it started from, paired by "
            "seed, ± the wider side of the 95 % t interval over seeds. ✓: better. ✗: worse. ~: no difference shown. "
            "A mark in brackets is lost when the comparisons of this table are corrected for their number, at a false "
            f"discovery rate of 5 %{all_of_them}."
        )
        said.append(("against its start", text))
    if windows:
        count = " or ".join(map(str, windows))
        noun = "window" if windows == [1] else "windows"
        text = (
            f"Evaluation noise: 95 % interval of that ratio over {count} {noun} of text, the pruned models held fixed."
        )
        said.append(("evaluation noise", text))
    if any(found.p is not None for found in compared):
        said.append(("p", "p: the p-value of a sign-flip test over seeds."))
    if any(found.q is not None for found in compared):
        said.append(("q", "q: the corrected p-value of the t test over seeds."))
    if any(summary.pareto for summary in shown):
        text = "Pareto: no row has both a lower mean perplexity and fewer parameters (size) or passes (cost)."
        said.append(("Pareto", text))
    if any(summary.row.backward_passes for summary in shown):
        said.append(("criterion", "∇: needs back-propagation."))
    said += [(task, f"{task}: score ± standard error over items.") for task in _tasks(summaries)]
    return said
