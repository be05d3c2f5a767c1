"""Rows over seeds: means and noise, each search against its own start, and what may be called best."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Cell, Metric, Search
from polyprune_core.results.statistics import (
    EvaluationNoise,
    Paired,
    Sample,
    corrected,
    evaluation_noise,
    paired,
    pareto,
    sample,
)

if TYPE_CHECKING:
    from polyprune_core.results.row import Row, TextScores

Windows = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Summary:
    """Rows that differ in their seed only.

    `versus` compares a search with its own starting policy, seed by seed. `best` is the row that every other one of
    its granularity and sparsity is worse than, beyond the noise. `pareto` names what no other row beats this one in,
    by means: `size` (perplexity and parameters kept) and `cost` (perplexity and passes, at one sparsity). `references`
    has for each evaluation the lowest mean excess of a metric alone without repair, at the same granularity, budget and
    seeds; None where there is no such metric, or it is no worse than the dense model.
    """

    row: Row
    rows: tuple[Row, ...]
    perplexity: Sample | None
    log_perplexity: Sample | None
    failed: int
    versus: Paired | None = None
    best: bool = False
    pareto: tuple[str, ...] = ()
    references: tuple[float | None, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were measured."""
        return tuple(row.cell.seed for row in self.rows if row.cell.seed is not None)

    @property
    def shares(self) -> tuple[float | None, ...]:
        """The excess of each evaluation as a fraction of its reference."""
        return tuple(map(share, self.row.evaluations, self.references))

    @property
    def perplexities(self) -> tuple[Sample | None, ...]:
        """The perplexity of each evaluation over seeds."""
        return tuple(
            sample([row.evaluations[index].perplexity or math.inf for row in self.rows]) if self.rows else None
            for index in range(len(self.row.evaluations))
        )

    @property
    def alike(self) -> bool:
        """Whether several seeds gave one and the same loss: what was measured draws nothing, and n confirms nothing."""
        return len(self.rows) > 1 and len({row.nll for row in self.rows}) == 1

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        row, perplexity = self.row, self.perplexity
        shared = {name: value for name, value in row.cell.model_dump(mode="json").items() if name != "seed"}
        return shared | {
            "n": len(self.rows),
            "failed": self.failed,
            "perplexity_mean": perplexity and perplexity.mean,
            "perplexity_sd": perplexity and perplexity.sd,
            "ci95": perplexity and perplexity.ci95,
            "tasks": row.tasks,
            "evaluations": [
                {
                    "text": each.text,
                    "seq_len": each.seq_len,
                    "perplexity_mean": spread and spread.mean,
                    "perplexity_sd": spread and spread.sd,
                    "kl_to_dense": each.kl_to_dense,
                    "top1_agreement": each.top1_agreement,
                    "excess": each.excess,
                    "share": fraction,
                }
                for each, spread, fraction in zip(row.evaluations, self.perplexities, self.shares, strict=True)
            ],
            "versus": self.versus and _versus_json(self.versus),
            "best": self.best,
            "pareto": list(self.pareto),
        }


def summarise(rows: Sequence[Row], windows: Windows) -> list[Summary]:
    """Groups rows over seeds, in the order in which they first appear.

    `windows` maps the id of a row to (N,), the mean loss of each evaluation window in nats per token; a row without
    them has no evaluation noise.
    """
    groups: dict[Cell, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.cell.without("seed"), []).append(row)
    found = [_summary(group) for group in groups.values()]
    summaries = dict(zip(groups, found, strict=True))
    versus = corrected([_against(each, summaries, windows) for each in found])
    marked = _with_best([dataclasses.replace(each, versus=v) for each, v in zip(found, versus, strict=True)], windows)
    return _with_references(_with_pareto(marked))


def share(evaluation: TextScores, reference: float | None) -> float | None:
    """Returns the evaluation's excess as a fraction of `reference`, where both are known."""
    return None if evaluation.excess is None or reference is None else evaluation.excess / reference


def compared(summary: Summary, reference: Summary, windows: Windows) -> Paired | None:
    """Compares two rows over the seeds they share; None where they share none."""
    others = {row.cell.seed: row for row in reference.rows}
    pairs = [(row, others[row.cell.seed]) for row in summary.rows if row.cell.seed in others]
    if not pairs:
        return None
    ours, theirs = zip(*pairs, strict=True)
    noise = _evaluation_noise(ours, theirs, windows)
    return dataclasses.replace(paired(_losses(ours), _losses(theirs)), evaluation=noise)


def _summary(rows: list[Row]) -> Summary:
    done = tuple(row for row in rows if row.status == "ok" and row.nll is not None)
    return Summary(
        row=_mean_row(done) if done else rows[0],
        rows=done,
        perplexity=sample([row.perplexity or math.inf for row in done]) if done else None,
        log_perplexity=sample(_losses(done)) if done else None,
        failed=len(rows) - len(done),
    )


def _mean_row(rows: Sequence[Row]) -> Row:
    """The first row with what varies over seeds averaged; peak memory is the highest, of poolings all are named."""
    means: dict[str, Any] = {
        name: sum(values) / len(values)
        for name in ("sparsity_achieved", "budget_achieved", "kl_to_dense", "top1_agreement", "search_seconds")
        if (values := [value for row in rows if (value := getattr(row, name)) is not None])
    }
    peaks = [row.peak_memory_mb for row in rows if row.peak_memory_mb is not None]
    tasks = {task: _mean_scores([row.tasks[task] for row in rows if task in row.tasks]) for task in rows[0].tasks}
    evaluations = tuple(_mean_evaluation(each) for each in zip(*(row.evaluations for row in rows), strict=True))
    for name in ("scope_chosen", "scale_chosen"):
        means[name] = " or ".join(dict.fromkeys(value for row in rows if (value := getattr(row, name)))) or None
    return dataclasses.replace(
        rows[0], peak_memory_mb=max(peaks, default=None), tasks=tasks, evaluations=evaluations, **means
    )


def _mean_evaluation(evaluations: Sequence[TextScores]) -> TextScores:
    """One evaluation of several seeds: the first with everything measured averaged."""
    means = {
        name: sum(values) / len(values)
        for name in ("perplexity", "nll", "kl_to_dense", "top1_agreement", "excess")
        if (values := [value for each in evaluations if (value := getattr(each, name)) is not None])
    }
    return dataclasses.replace(evaluations[0], **means)


def _mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    return {metric: sum(one[metric] for one in scores) / len(scores) for metric in scores[0]}


def _losses(rows: Iterable[Row]) -> list[float]:
    return [row.nll or 0.0 for row in rows]


def _against(summary: Summary, summaries: Mapping[Cell, Summary], windows: Windows) -> Paired | None:
    cell = summary.row.cell
    start = summaries.get(cell.start().without("seed")) if isinstance(cell, Search) else None
    return compared(summary, start, windows) if start else None


def _evaluation_noise(ours: Sequence[Row], theirs: Sequence[Row], windows: Windows) -> EvaluationNoise | None:
    sides = [[windows.get(row.id) for row in side] for side in (ours, theirs)]
    lengths = {None if found is None else len(found) for side in sides for found in side}
    if None in lengths or len(lengths) > 1:
        return None
    return evaluation_noise(*(np.stack([found for found in side if found is not None]) for side in sides))


def _section(summary: Summary) -> tuple[str | None, BudgetSpec | None]:
    return (summary.row.cell.granularity, summary.row.cell.target)


def _with_best(summaries: list[Summary], windows: Windows) -> list[Summary]:
    """Marks the best rows; a row that has to win every comparison needs no correction for their number."""
    best = set()
    for section in {_section(each): None for each in summaries}:
        ranked = sorted((s for s in summaries if _section(s) == section and s.log_perplexity), key=_mean_log)
        if len(ranked) > 1 and all(_beats(ranked[0], other, windows) for other in ranked[1:]):
            best.add(ranked[0].row.cell.without("seed"))
    return [dataclasses.replace(each, best=each.row.cell.without("seed") in best) for each in summaries]


def _beats(summary: Summary, other: Summary, windows: Windows) -> bool:
    found = compared(summary, other, windows)
    return found is not None and found.verdict == "better"


def _mean_log(summary: Summary) -> float:
    return summary.log_perplexity.mean if summary.log_perplexity else math.inf


def _with_pareto(summaries: list[Summary]) -> list[Summary]:
    """Marks the rows on either front; sizes are compared to 0.1 % of the model, passes forward and backward apart."""
    names: dict[int, list[str]] = {index: [] for index in range(len(summaries))}
    means = {i: each.perplexity.mean for i, each in enumerate(summaries) if each.perplexity}
    done = [index for index, mean in means.items() if math.isfinite(mean)]
    sized = [(means[i], round(summaries[i].row.parameters_kept_fraction or 1, 3)) for i in done]
    for index in itertools.compress(done, pareto(sized)):
        names[index].append("size")
    for target in {summaries[i].row.cell.target for i in done} - {None}:
        here = [i for i in done if summaries[i].row.cell.target == target]
        costs = [(means[i], summaries[i].row.forward_tokens, summaries[i].row.backward_passes) for i in here]
        for index in itertools.compress(here, pareto(costs)):
            names[index].append("cost")
    return [dataclasses.replace(each, pareto=tuple(names[index])) for index, each in enumerate(summaries)]


def _with_references(summaries: list[Summary]) -> list[Summary]:
    """Adds what the excess of each row is a fraction of."""
    return [
        dataclasses.replace(
            each, references=tuple(_reference(each, index, summaries) for index in range(len(each.row.evaluations)))
        )
        for each in summaries
    ]


def _reference(summary: Summary, index: int, summaries: Sequence[Summary]) -> float | None:
    excesses = [
        other.row.evaluations[index].excess
        for other in summaries
        if isinstance(other.row.cell, Metric)
        and not other.row.cell.repaired
        and (_section(other), set(other.seeds)) == (_section(summary), set(summary.seeds))
        and len(other.row.evaluations) > index
    ]
    lowest = min((excess for excess in excesses if excess is not None and math.isfinite(excess)), default=0.0)
    return lowest if lowest > 0 else None


def _versus_json(versus: Paired) -> dict[str, Any]:
    noise = versus.evaluation
    return {
        "row": "start",
        "ratio": versus.ratio,
        "ci95": versus.ci95,
        "p": versus.p,
        "q": versus.q,
        "evaluation": noise and {"windows": noise.windows, "ci95": noise.ci95},
        "verdict": versus.verdict,
    }
