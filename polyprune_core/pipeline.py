"""The two jobs: compare a grid of criteria, and prune one model for good."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyprune_core import __version__, budget
from polyprune_core.config import Cell, Comparison, cell_id, cells
from polyprune_core.data import ROLES, Text, load_text
from polyprune_core.details import Details, Group, path_of, read_details, write_details
from polyprune_core.environment import environment
from polyprune_core.errors import ConfigError, PolypruneError
from polyprune_core.evaluate import Evaluation
from polyprune_core.harness import Decision, Harness, check_plugins
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import Registry
from polyprune_core.progress import Reporter
from polyprune_core.results import Results, Row
from polyprune_core.space import MaskSpace
from polyprune_core.store import Store, write_json


def compare(
    config: Comparison,
    registry: Registry,
    store: Store,
    reporter: Reporter,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Runs every cell that the store does not hold and returns them all; `on_row` sees each as it is done.

    A cell that fails for a reason the user can mend is a row with that reason; the others go on.
    """
    sources = check_plugins(config, registry)
    harness = open_harness(config, registry, reporter)
    identity = _identity(harness)
    run: dict[str, Any] = {
        "polyprune": __version__,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "model": _model(harness),
        "texts": _texts(harness),
    }
    grid = cells(config)
    done: dict[Cell, Row] = {}
    with harness.compactor:
        # A cell that another process has is left until the rest is done: processes on one store share the work.
        for wait in (False, True):
            for cell in [cell for cell in grid if cell not in done]:
                plugins = _plugins(cell, sources)
                key = cell_id(cell, config, identity | {"plugins": plugins})
                with store.claimed(key, wait) as mine:
                    if mine:
                        done[cell] = store.read(key) or _run(harness, cell, key, plugins, store, run)
                        on_row(done[cell])
    rows = [done[cell] for cell in grid]
    results = Results(**run, rows=rows, details=_beside(rows, store, reporter))
    try:
        write_json(store.folder / "results.json", results.to_json())
    except ConfigError as error:
        reporter.warn(str(error))
    return results


def open_harness(config: Comparison, registry: Registry, reporter: Reporter, budgets: bool = True) -> Harness:
    """Loads the texts and the model of a comparison, and with `budgets` checks that every sparsity can be met.

    Raises:
        PolypruneError: anything asked for cannot be had; nothing has been run yet.
    """
    texts: dict[str, Text] = {role: load_text(getattr(config, role), role) for role in ROLES}
    if texts["calibration"].sha256 == texts["evaluation"].sha256:
        reporter.warn(
            f"{config.evaluation} is used both to calibrate and to evaluate: its perplexities flatter every row"
        )
    loaded = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        status=reporter.status,
    )
    harness = Harness(loaded, texts, config, registry, reporter)
    for granularity in config.granularity if budgets else ():
        space = harness.space(granularity)
        for sparsity, scope in itertools.product(config.sparsity, config.scope):
            budget.select(torch.zeros(len(space)), space, sparsity, scope, config.min_keep)
    return harness


def _run(harness: Harness, cell: Cell, key: str, plugins: dict[str, str], store: Store, run: dict[str, Any]) -> Row:
    blank = Row(id=key, plugins=plugins, **cell.model_dump())
    try:
        if cell.kind == "dense":
            row, trace = _dense_row(blank, harness), None
            details = Details(_windows(harness.dense), run)
        else:
            decision = harness.decide(cell)
            space = harness.space(cell.granularity or "")
            evaluation = harness.evaluate(_label(cell), space, decision.selection)
            row, trace = pruned_row(blank, decision, evaluation, harness), decision.trace
            details = _decided(space, decision, evaluation, run)
    except PolypruneError as error:
        return dataclasses.replace(blank, status="failed", error=str(error))
    write_details(path_of(store.cells, key), details)
    store.write(row, trace)
    return row


def pruned_row(blank: Row, decision: Decision, evaluation: Evaluation, harness: Harness) -> Row:
    """Fills in what was decided, what it cost and how good it is."""
    selection, cost = decision.selection, decision.cost
    total = harness.layout.total_parameters
    kept = total - (selection.total_cost - selection.kept_cost)
    return dataclasses.replace(
        blank,
        sparsity_achieved=selection.sparsity,
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


def _decided(space: MaskSpace, decision: Decision, evaluation: Evaluation, run: dict[str, Any]) -> Details:
    return Details(
        window_nll=_windows(evaluation),
        run=run,
        groups=tuple(Group(group.kind, group.layer, group.count) for group in space.groups),
        keep=decision.selection.keep.numpy(),
        scores=decision.scores.values.numpy(),
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


def _label(cell: Cell) -> str:
    name = f"{cell.initializer} → {cell.estimator}" if cell.estimator else cell.initializer
    return f"{name}, sparsity {cell.sparsity}, seed {cell.seed}"


def _plugins(cell: Cell, sources: dict[str, dict[str, str]]) -> dict[str, str]:
    used = {}
    for part in (cell.granularity or "").split("+"):
        if part:
            used[f"granularity {part}"] = sources["granularity"][part]
    if cell.initializer:
        used["initializer"] = sources["initializer"][cell.initializer]
    if cell.estimator:
        used["estimator"] = sources["estimator"][cell.estimator]
    return used


def _identity(harness: Harness) -> dict[str, Any]:
    return {
        "polyprune": __version__,
        "weights": harness.loaded.sha256,
        "dtype": str(harness.loaded.model.dtype),
        "device": harness.loaded.model.device.type,
        "texts": {role: text.sha256 for role, text in harness.texts.items()},
    }


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
    return {
        role: {
            "name": text.name,
            "sha256": text.sha256,
            "windows": windows[role].shape[0],
            "tokens_per_window": windows[role].shape[1],
        }
        for role, text in harness.texts.items()
    }
