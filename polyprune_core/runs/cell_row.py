"""One cell as a row: read from the store, or run and written there."""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyprune_core.config.cell import Dense
from polyprune_core.errors import ConfigError, PolypruneError, ResultError
from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.results.cell_file import Details, Group, path_of, write_details
from polyprune_core.results.row import Row, impossible
from polyprune_core.results.store import Store
from polyprune_core.runs.decision import Decider, Decision
from polyprune_core.runs.harness import Harness
from polyprune_core.search.checkpoint import Checkpoint


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
            details = Details(_windows(harness.dense), run)
        else:
            if isinstance(cell, Dense):
                decision = decider.trained(cell, checkpoint)
            else:
                decision = decider.decide(cell, checkpoint)
            evaluation = harness.evaluate(cell.label, decision.pruned)
            blank = dataclasses.replace(blank, tasks=harness.task_scores(cell.label, decision.pruned))
            row, trace = pruned_row(blank, decision, evaluation), decision.trace
            whole = isinstance(cell, Dense)
            details = Details(_windows(evaluation), run) if whole else _decided(decision.pruned, evaluation, run)
        for reason in impossible(row):
            raise ResultError(f"{cell.label}: {reason}, which cannot be, so the row is not kept.")
    except PolypruneError as error:
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


def pruned_row(blank: Row, decision: Decision, evaluation: Evaluation) -> Row:
    """Fills in what was decided, what it cost and how good it is."""
    selection, cost = decision.selection, decision.cost
    kept, total = decision.pruned.parameters, decision.pruned.layout.total_parameters
    return dataclasses.replace(
        blank,
        sparsity_achieved=selection.sparsity,
        budget_achieved=decision.terms.spent(selection, decision.pruned.added_parameters)
        if decision.terms and blank.cell.budget
        else None,
        parameters_kept=kept,
        parameters_kept_fraction=kept / total,
        forward_passes=cost.forward_passes,
        forward_tokens=cost.forward_tokens,
        backward_passes=cost.backward_passes,
        search_seconds=cost.seconds,
        peak_memory_mb=cost.peak_memory_mb,
        non_finite_losses=decision.trace.non_finite if decision.trace else 0,
        **_measured(evaluation),
    )


def _failed(blank: Row, error: PolypruneError) -> Row:
    return dataclasses.replace(blank, status="failed", error=str(error))


def _decided(pruned: PrunedModel, evaluation: Evaluation, run: dict[str, Any]) -> Details:
    return Details(
        window_nll=_windows(evaluation),
        run=run,
        groups=tuple(Group(group.kind, group.layer, group.count) for group in pruned.space.groups),
        keep=pruned.selection.keep.numpy(),
        scores=pruned.scores.values.numpy(),
        updates={name: value.detach().cpu().float().numpy() for name, value in pruned.updates.items()},
    )


def _windows(evaluation: Evaluation) -> NDArray[np.float32]:
    return np.asarray(evaluation.window_nll, np.float32)


def _dense_row(blank: Row, harness: Harness) -> Row:
    total, measured = harness.layout.total_parameters, _measured(harness.dense)
    return dataclasses.replace(
        blank,
        sparsity_achieved=0.0,
        parameters_kept=total,
        parameters_kept_fraction=1.0,
        peak_memory_mb=harness.dense_peak_mb,
        tasks=harness.task_scores("dense model"),
        **measured,
    )


def _measured(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "perplexity": evaluation.perplexity,
        "nll": evaluation.nll,
        "eval_tokens": evaluation.tokens,
        "kl_to_dense": evaluation.kl_to_dense,
        "top1_agreement": evaluation.top1_agreement,
    }
