"""One cell as a row: read from the store, or run and written there."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyprune_core.config.cell import AUTO, Dense
from polyprune_core.errors import ConfigError, PolypruneError, ResultError, brief
from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.results.cell_file import Details, Group, path_of, write_details
from polyprune_core.results.row import Row, TextScores, impossible
from polyprune_core.results.store import Store
from polyprune_core.runs.decision import Decider, Decision
from polyprune_core.runs.harness import Harness
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.utils.memory import ran_out

LESS = "give a smaller --batch-size, --repair-samples or number format, or fewer --workers."


def finished(blank: Row, store: Store) -> Row | None:
    """Returns the row that the store holds, a failed one where its file is not ours, or None."""
    try:
        row = store.read(blank.id)
    except ConfigError as error:
        return _failed(blank, error)
    if row:
        Checkpoint(store.checkpoint(row.id), row.id).remove()
    return row


def run_cell(decider: Decider, blank: Row, store: Store, run: dict[str, Any]) -> Row:
    """Returns the row of a cell that nobody has run; a reason the user can mend makes it a failed one."""
    harness, cell = decider.harness, blank.cell
    checkpoint = Checkpoint(store.checkpoint(blank.id), blank.id, harness.reporter)
    if cell.is_reference:
        _ = harness.dense  # without which nothing can be compared
    try:
        harness.witness.require()
        if cell.is_reference:
            row, trace = _dense_row(blank, harness), None
            details = Details(run=run, **_windows(harness.dense))
        else:
            if isinstance(cell, Dense):
                decision = decider.trained(cell, checkpoint)
            else:
                decision = decider.decide(cell, checkpoint)
            evaluations = harness.evaluate(cell.label, decision.pruned)
            blank = dataclasses.replace(blank, tasks=harness.task_scores(cell.label, decision.pruned))
            row, trace = pruned_row(blank, decision, evaluations, harness.dense), decision.trace
            whole = isinstance(cell, Dense)
            details = Details(run=run, **_windows(evaluations)) if whole else _decided(decision, evaluations, run)
        for reason in impossible(row):
            raise ResultError(f"{cell.label}: {reason}, which cannot be, so the row is not kept.")
    except (PolypruneError, MemoryError, RuntimeError) as error:
        if not isinstance(error, PolypruneError) and not ran_out(error):
            raise
        checkpoint.remove()
        harness.reporter.detail("".join(traceback.format_exception(error)))
        return _failed(blank, error)
    try:
        write_details(path_of(store.cells, row.id), details)
        store.write(row, trace)
        checkpoint.remove()
    except ConfigError as error:
        store.unwritten.append(path_of(store.cells, row.id))
        harness.reporter.warn(f"{error} Its row is in the results, but the cell would be run again.")
    return row


def pruned_row(blank: Row, decision: Decision, evaluations: Sequence[Evaluation], dense: Sequence[Evaluation]) -> Row:
    """Fills in what was decided, what it cost and how good it is beside the dense model."""
    selection, cost = decision.selection, decision.cost
    kept, total = decision.pruned.parameters, decision.pruned.layout.total_parameters
    return dataclasses.replace(
        blank,
        scope_chosen=decision.cell.scope if blank.cell.scope == AUTO else None,
        scale_chosen=decision.cell.scale if blank.cell.scale == AUTO else None,
        sparsity_achieved=selection.sparsity,
        budget_achieved=decision.terms.spent(selection, decision.pruned.added_parameters)
        if decision.terms and blank.cell.budget
        else None,
        parameters_kept=kept,
        parameters_kept_fraction=kept / total,
        active_parameters=decision.pruned.active_parameters,
        forward_passes=cost.forward_passes,
        forward_tokens=cost.forward_tokens,
        backward_passes=cost.backward_passes,
        search_seconds=cost.seconds,
        peak_memory_mb=cost.peak_memory_mb,
        non_finite_losses=decision.trace.non_finite if decision.trace else 0,
        **_measured(evaluations, dense),
    )


def _failed(blank: Row, error: BaseException) -> Row:
    """Returns the row with the reason; where memory ran out, with what may help."""
    told = f"out of memory ({brief(error, 160)}); {LESS}" if ran_out(error) else str(error)
    return dataclasses.replace(blank, status="failed", error=told)


def _decided(decision: Decision, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> Details:
    pruned = decision.pruned
    return Details(
        **_windows(evaluations),
        run=run,
        groups=tuple(Group(group.kind, group.layer, group.count) for group in pruned.space.groups),
        keep=pruned.selection.keep.numpy(),
        scores=pruned.scores.values.numpy(),
        updates={name: value.detach().cpu().float().numpy() for name, value in pruned.updates.items()},
        poolings=decision.losses,
    )


def _windows(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    first, *further = (np.asarray(each.window_nll, np.float32) for each in evaluations)
    return {"window_nll": first, "further_nll": tuple(further)}


def _dense_row(blank: Row, harness: Harness) -> Row:
    total, measured = harness.layout.total_parameters, _measured(harness.dense, harness.dense)
    return dataclasses.replace(
        blank,
        sparsity_achieved=0.0,
        parameters_kept=total,
        parameters_kept_fraction=1.0,
        active_parameters=harness.whole().active_parameters,
        peak_memory_mb=harness.dense_peak_mb,
        tasks=harness.task_scores("dense model"),
        **measured,
    )


def _measured(evaluations: Sequence[Evaluation], dense: Sequence[Evaluation]) -> dict[str, Any]:
    """The numbers of the headline, and those of every evaluation."""
    headline = evaluations[0]
    return {
        "perplexity": headline.perplexity,
        "nll": headline.nll,
        "eval_tokens": headline.tokens,
        "kl_to_dense": headline.kl_to_dense,
        "top1_agreement": headline.top1_agreement,
        "evaluations": on_texts(evaluations, dense),
    }


def on_texts(evaluations: Sequence[Evaluation], dense: Sequence[Evaluation] | None) -> tuple[TextScores, ...]:
    """Returns what results keep of evaluations beside the dense model's on the same windows, where it was measured."""
    beside: Sequence[Evaluation | None] = dense or [None] * len(evaluations)
    return tuple(
        TextScores(
            text=each.text,
            seq_len=each.seq_len or 0,
            perplexity=each.perplexity,
            nll=each.nll,
            tokens=each.tokens,
            kl_to_dense=each.kl_to_dense,
            top1_agreement=each.top1_agreement,
            excess=each.nll - other.nll if other else None,
        )
        for each, other in zip(evaluations, beside, strict=True)
    )
