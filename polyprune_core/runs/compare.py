"""The two jobs: compare a grid of criteria, and prune one model for good."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyprune_core.config.cell import AnyCell, Cell, Dense, Pruned
from polyprune_core.config.grid import cell_id, cells
from polyprune_core.config.settings import Comparison
from polyprune_core.errors import ConfigError, PolypruneError, ResultError
from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.evaluation.tasks import Tasks
from polyprune_core.evaluation.text import ROLES, load_texts
from polyprune_core.evaluation.windows import RUN, TELLING_OVERLAP
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.results.cell_file import Details, Group, path_of, read_details, write_details
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row, impossible
from polyprune_core.results.store import Store
from polyprune_core.runs.cell_identity import identity, used_plugins
from polyprune_core.runs.decision import Decider, Decision
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.inputs import inputs
from polyprune_core.runs.preflight import check_plugins, settled
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import write_json
from polyprune_core.utils.outputs import check_apart
from polyprune_core.utils.progress import Reporter
from polyprune_core.version import __version__


def compare(
    config: Comparison,
    registry: Registry,
    store: Store,
    reporter: Reporter,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Runs every cell that the store does not hold and returns them all; `on_row` sees each as it is done.

    A cell that fails for a reason the user can mend, a broken file in the store among them, is a row with that reason;
    the others go on. What cannot be written is told, kept in the results and named in `store.unwritten`.
    """
    config = settled(config, registry)
    sources = check_plugins(config, registry)
    for place in (store.cells, store.summary):
        check_apart(place, inputs(config))
    harness = open_harness(config, registry, reporter)
    shared = _identity(harness, config)
    run: dict[str, Any] = {
        "polyprune": __version__,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "model": _model(harness),
        "texts": _texts(harness),
    }
    grid = cells(config)
    plugins = {cell: used_plugins(cell, sources) for cell in grid}
    keys = {cell: cell_id(cell, config, shared | {"plugins": plugins[cell]}) for cell in grid}
    done: dict[Cell, Row] = {}
    decider = Decider(harness)
    with harness.compactor:
        # A cell that another process has is left until the rest is done: processes on one store share the work.
        for wait in (False, True):
            for cell in [cell for cell in grid if cell not in done]:
                blank = Row(keys[cell], cell, plugins=plugins[cell])
                row = _finished(blank, store)
                if row is None:
                    with store.claimed(blank.id, wait) as mine:
                        row = (_finished(blank, store) or _run(decider, cell, blank, store, run)) if mine else None
                if row:
                    done[cell] = row
                    on_row(row)
    rows = [done[cell] for cell in grid]
    results = Results(**run, rows=rows, details=_beside(rows, store, reporter))
    try:
        write_json(store.summary, results.to_json())
    except ConfigError as error:
        store.unwritten.append(store.summary)
        reporter.warn(str(error))
    return results


def open_harness(config: Comparison, registry: Registry, reporter: Reporter, budgets: bool = True) -> Harness:
    """Loads the texts and the model of a comparison, and with `budgets` checks that every budget can be met.

    Raises:
        PolypruneError: anything asked for cannot be had; nothing has been run yet.
    """
    texts = load_texts({role: getattr(config, role) for role in ROLES}, config.text_column)
    tasks = None
    if config.tasks:
        tasks = Tasks(config.tasks, config.include_path, config.num_fewshot, config.tasks_limit)
    with reporter.task(f"reading {config.model}", 0):
        loaded = load_model(
            config.model,
            dtype=config.dtype,
            device=config.device,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
            status=reporter.status,
        )
    with reporter.task("cutting the texts into tokens", 0):
        harness = Harness(loaded, texts, config, registry, reporter, tasks)
    if harness.overlap >= TELLING_OVERLAP:
        reporter.warn(
            f"{harness.overlap:.0%} of what is evaluated on in {config.evaluation}, in runs of {RUN} tokens, was "
            "calibrated on too: its perplexities flatter every row. Give texts that share no passages."
        )
    for cell in cells(config) if budgets else ():
        if isinstance(cell, Pruned):
            harness.terms(cell)
    return harness


def _finished(blank: Row, store: Store) -> Row | None:
    """Returns the row that the store holds, a failed one where its file is not ours, or None."""
    try:
        row = store.read(blank.id)
    except ConfigError as error:
        return _failed(blank, error)
    if row:
        Checkpoint(store.checkpoint(row.id), row.id).remove()
    return row


def _failed(blank: Row, error: PolypruneError) -> Row:
    return dataclasses.replace(blank, status="failed", error=str(error))


def _run(decider: Decider, cell: AnyCell, blank: Row, store: Store, run: dict[str, Any]) -> Row:
    harness = decider.harness
    checkpoint = Checkpoint(store.checkpoint(blank.id), blank.id, harness.reporter)
    if isinstance(cell, Dense):
        _ = harness.dense  # without which nothing can be compared
    try:
        harness.witness.require()
        if isinstance(cell, Dense):
            row, trace = _dense_row(blank, harness), None
            details = Details(_windows(harness.dense), run)
        else:
            decision = decider.decide(cell, checkpoint)
            evaluation = harness.evaluate(cell.label, decision.pruned)
            blank = dataclasses.replace(blank, tasks=harness.task_scores(cell.label, decision.pruned))
            row, trace = pruned_row(blank, decision, evaluation), decision.trace
            details = _decided(decision.pruned, evaluation, run)
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
        budget_achieved=decision.terms.spent(selection) if blank.cell.budget else None,
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


def _beside(rows: list[Row], store: Store, reporter: Reporter) -> dict[str, Details]:
    found = {}
    for row in rows:
        try:
            details = read_details(path_of(store.cells, row.id))
        except ConfigError as error:
            reporter.warn(str(error))
            continue
        if details is not None:
            found[row.id] = details
    return found


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


def _identity(harness: Harness, config: Comparison) -> dict[str, Any]:
    loaded, device = harness.loaded, harness.loaded.model.device.type
    texts = {role: text.sha256 for role, text in harness.texts.items()}
    return identity(config, loaded.sha256, loaded.path, str(loaded.model.dtype), device, texts)


def _model(harness: Harness) -> dict[str, Any]:
    spaces = harness.spaces
    return {
        "name": harness.loaded.name,
        "sha256": harness.loaded.sha256,
        "dtype": str(harness.loaded.model.dtype).removeprefix("torch."),
        "device": str(harness.loaded.model.device),
        "parameters": harness.layout.total_parameters,
        "prunable_parameters": {name: space.total_cost for name, space in spaces.items()},
        "weights_mb": harness.weights_bytes / 1e6,
    }


def _texts(harness: Harness) -> dict[str, Any]:
    windows = {"calibration": harness.calibration_windows, "evaluation": harness.evaluation_windows}
    overlap: dict[str, Any] = {"calibration": {}, "evaluation": {"overlap": harness.overlap}}
    return {
        role: {
            "name": text.name,
            "sha256": text.sha256,
            "windows": windows[role].shape[0],
            "tokens_per_window": windows[role].shape[1],
            "bos": harness.cutter.told,
            **overlap[role],
        }
        for role, text in harness.texts.items()
    }
