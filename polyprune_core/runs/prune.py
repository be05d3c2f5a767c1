"""Prunes one model: decides and measures in memory, then exports it, reads it back and measures again if asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import NO_REPAIR, Pruned
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.perplexity import Evaluator, in_turn, measured
from polyprune_core.models.placement import placed
from polyprune_core.plugins.contracts import Exporter
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.report.commands import command, portable
from polyprune_core.runs.added_biases import check_added, check_repair
from polyprune_core.runs.asked_shapes import check_shapes, held_by
from polyprune_core.runs.decision import REPAIRED_FROM, Cost, Decider
from polyprune_core.runs.engines import placement_of
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.inputs import inputs
from polyprune_core.runs.opening import open_harness
from polyprune_core.runs.outcome import Outcome
from polyprune_core.runs.preflight import check_plugins, settled
from polyprune_core.runs.pruning_result import PruningResult
from polyprune_core.runs.workplace import spread_over
from polyprune_core.utils.outputs import NewFolder, new_folder, write_record
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.threads import computing_in

# What masks have decided, that is not asked of them again.
DECIDED = {"granularity", "initializer", "estimator", "scope", "scale", "seed", "protect"}


def prune(
    request: Pruning, registry: Registry, output: Path | None, overwrite: bool, reporter: Reporter
) -> PruningResult:
    """Prunes and measures in memory; what is written to `output` appears whole or not at all, and is read back.

    Raises:
        PolypruneError: anything asked for cannot be had, or the output folder may not be written.
    """
    with placed(placement_of(request)), computing_in(request.threads, reporter.status):
        return _prune(request, registry, output, overwrite, reporter)


def _prune(
    request: Pruning, registry: Registry, output: Path | None, overwrite: bool, reporter: Reporter
) -> PruningResult:
    masks, told = MaskFile.read(request.from_masks) if request.from_masks else None, _command(request)
    if masks:
        request = _as_the_masks_say(request, masks)
    asked = request.model_copy(update={"repair": _repair(request, masks)}) if masks else request
    config = settled(asked.as_comparison(), registry)
    check_plugins(config, registry)
    exporter = registry.build("exporter", request.exporter)
    if output is None:
        harness = open_harness(config, registry, reporter, budgets=masks is None)
        return _measured(request, config, masks, Decider(harness), told)
    read = inputs(config) | ({"the masks": masks.folder} if masks else {})
    with new_folder(output, overwrite, read) as place:
        harness = open_harness(config, registry, reporter, masks is None, exporter)
        held, written = held_by(exporter, harness.layout), f"--exporter {request.exporter}"
        check_repair(asked.repair, written, held, harness.whole(), registry)
        result = _measured(request, config, masks, Decider(harness), told)
        return dataclasses.replace(result, written=_written(result, request, exporter, place, harness))


def _command(request: Pruning) -> str:
    """Returns the command that decides the same, where the files that it names are in the current folder."""
    return command(portable(request.model_dump(mode="json", exclude={"exporter", "device"})), "prune", Pruning)


def _measured(
    request: Pruning, config: Comparison, masks: MaskFile | None, decider: Decider, told: str
) -> PruningResult:
    harness = decider.harness
    with harness.compactor, spread_over(harness, request):
        pruned, cost, terms = _apply(masks, request, decider) if masks else _decide(config, decider)
        budget = str(terms.target) if terms and terms.target.sparsity is None else None
        achieved = terms.spent(pruned.selection, pruned.added_parameters) if terms and budget else None
        in_memory = harness.evaluate("the model cut in memory", pruned)
        dense = harness.dense
    recipe = pruned.recipe | {"command": told}
    pruned = dataclasses.replace(pruned, measured=measured(in_memory, dense), recipe=recipe)
    return PruningResult(pruned, in_memory, dense, cost, budget, achieved)


def _written(
    result: PruningResult, request: Pruning, exporter: Exporter, place: NewFolder, harness: Harness
) -> Outcome:
    pruned, loaded, reporter = result.pruned, harness.loaded, harness.reporter
    check_added(request.exporter, pruned, harness.registry)
    plugin, trust_remote_code = ("exporter", request.exporter), request.trust_remote_code
    with place.filled() as folder:
        with reporter.task("writing the model", 0), harness.watched(plugin):
            report = exporter.export(pruned, folder)
        with reporter.task("reading it back", 0), harness.watched(plugin):
            dtype = str(loaded.model.dtype).removeprefix("torch.")
            device = str(loaded.model.device)
            reloaded = exporter.load(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        evaluators = [Evaluator(each.windows, text=each.text.name) for each in harness.windows.evaluated]
        outcome = Outcome(
            report=dataclasses.replace(report, path=place.path),
            sparsity=result.sparsity,
            budget=result.budget,
            budget_achieved=result.budget_achieved,
            shapes=pruned.recipe.get("shapes"),
            dense=harness.dense,
            in_memory=result.evaluations,
            reloaded=in_turn(evaluators, Evaluator.dense, reloaded.model, "the model read back", reporter),
            calibration=tuple(harness.texts.calibration.name.split("+")),
            dense_parameters=harness.layout.total_parameters,
            active_parameters=pruned.active_parameters,
            dense_active_parameters=harness.whole().active_parameters,
            dense_bytes=harness.stored_bytes,
            cost=result.cost,
        )
        write_record(folder, outcome.to_json())
    return outcome


def _as_the_masks_say(request: Pruning, masks: MaskFile) -> Pruning:
    decided = request.model_fields_set & DECIDED
    if decided:
        names = ", ".join(f"--{name}" for name in sorted(decided))
        raise ConfigError(
            f"the masks in {masks.folder} have decided {names}; leave it out, or prune without --from-masks."
        )
    widths = request.model_fields_set & {"multiple_of", "target"}
    if widths and request.sparsity is None and request.budget is None:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in sorted(widths))
        raise ConfigError(
            f"{names} is about a selection, and the masks in {masks.folder} are taken as they are; give --sparsity or "
            "--budget to select from their scores anew."
        )
    shapes = ShapesSpec.parse(masks.recipe.get("shapes"))
    told = {name: masks.recipe[name] for name in REPAIRED_FROM if isinstance(masks.recipe.get(name), int)}
    told = {"model": masks.base_name, "multiple_of": shapes.multiples, "target": shapes.target, **told}
    return request.model_copy(
        update={name: value for name, value in told.items() if name not in request.model_fields_set}
    )


def _repair(request: Pruning, masks: MaskFile) -> str:
    """Returns the repair that was asked for, or that of the masks."""
    asked = "repair" in request.model_fields_set
    return request.repair if asked else str(masks.recipe.get("repair", NO_REPAIR))


def _apply(masks: MaskFile, request: Pruning, decider: Decider) -> tuple[PrunedModel, Cost, PricedBudget | None]:
    """Returns the masks as they are, or selected anew and repaired as before, or with another repair.

    As before is with the repair's own options, seed and number of windows, on the calibration text of this request.
    """
    harness, terms = decider.harness, None
    asked = str(ShapesSpec.of(request.multiple_of, request.target)) or None
    check_shapes((asked,), [masks.space(harness.loaded)] if asked else (), harness.loaded, harness.registry)
    shapes = harness.shapes(asked)
    if request.budget is not None:
        rule = masks.rule()
        target, space = BudgetSpec.parse(request.budget), masks.space(harness.loaded)
        terms = price_budget(target, space, rule.scope, rule.min_keep, harness, rule.protect, shapes)
    pruned = masks.apply(harness.loaded, request.sparsity, terms, shapes, asked)
    anew = "repair" in request.model_fields_set
    if not anew and request.sparsity is None and terms is None:
        return pruned, Cost(), None
    spec = _repair(request, masks)
    text = masks.recipe.get("texts", {}).get("calibration")
    if not anew and spec != NO_REPAIR and text not in (None, harness.texts.calibration.sha256):
        harness.reporter.warn(
            f"the masks in {masks.folder} were repaired on another calibration text; give that one as --calibration to "
            "repair as before."
        )
    pruned = dataclasses.replace(pruned, updates={})
    pruned, cost = decider.repaired(pruned, spec, int(masks.recipe.get("seed") or 0))
    return pruned, cost, terms


def _decide(config: Comparison, decider: Decider) -> tuple[PrunedModel, Cost, PricedBudget | None]:
    cell, harness = cells(config)[-1], decider.harness
    assert isinstance(cell, Pruned)
    decision = decider.decide(cell)
    recipe = decision.cell.model_dump(mode="json") | {
        "min_keep": config.min_keep,
        "protect": config.protect,
        "revision": config.revision,
        "texts": harness.texts.hashes,
    }
    recipe |= {"bos": config.bos} | (decider.sample if cell.repaired else {})
    return dataclasses.replace(decision.pruned, recipe=recipe), decision.cost, decision.terms
