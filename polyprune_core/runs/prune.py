"""One model, cut for good: decided, exported, read back from disk, measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import NO_REPAIR, Pruned
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.errors import ConfigError, counted
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator
from polyprune_core.plugins.contracts import Exporter, check_exportable
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import ExportReport
from polyprune_core.runs.compare import open_harness
from polyprune_core.runs.decision import Cost, Decider
from polyprune_core.runs.inputs import inputs
from polyprune_core.runs.preflight import check_plugins, settled
from polyprune_core.utils.environment import environment
from polyprune_core.utils.outputs import NewFolder, new_folder, write_record
from polyprune_core.utils.progress import Reporter
from polyprune_core.version import __version__


@dataclass(frozen=True)
class Outcome:
    """A pruned model on disk: what it scores as read back, beside the dense model and the model cut in memory."""

    report: ExportReport
    sparsity: float
    budget: str | None
    budget_achieved: float | None
    dense: Evaluation
    in_memory: Evaluation
    reloaded: Evaluation
    dense_parameters: int
    dense_bytes: int
    cost: Cost

    def lines(self) -> list[str]:
        """Returns the outcome for people."""
        report, cost = self.report, self.cost
        perplexities = f"{self.reloaded.perplexity:.4f} read back from disk, {self.in_memory.perplexity:.4f} in memory"
        backward = counted(cost.backward_passes, "backward pass", "backward passes")
        rows = {
            **self._budget_line(),
            "sparsity": f"{self.sparsity:.4f} of the prunable parameters removed",
            "parameters": f"{report.parameters:,} of {self.dense_parameters:,}",
            "on disk": f"{report.bytes / 1e6:.1f} MB in all; the dense weights are {self.dense_bytes / 1e6:.1f} MB",
            "perplexity": f"{perplexities}; dense {self.dense.perplexity:.4f}",
            "cost": f"{cost.forward_tokens:,} forward tokens, {backward}",
        }
        lines = [f"{report.path} ({report.format})", *(f"  {name:<11} {text}" for name, text in rows.items())]
        return [*lines, "", *report.reload.strip().replace("(DIR", f"({str(report.path)!r}").splitlines()]

    def _budget_line(self) -> dict[str, str]:
        if self.budget is None or self.budget_achieved is None:
            return {}
        return {"budget": f"{self.budget} asked, {BudgetSpec.parse(self.budget).words(self.budget_achieved)} achieved"}

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome for scripts; no path of this machine."""
        record = dataclasses.asdict(self)
        record["report"]["path"] = self.report.path.name
        for name in ("dense", "in_memory", "reloaded"):
            record[name]["perplexity"] = getattr(self, name).perplexity
            del record[name]["window_nll"]
        return {"polyprune": __version__, "environment": environment(), **record}


def prune(request: Pruning, registry: Registry, output: Path, overwrite: bool, reporter: Reporter) -> Outcome:
    """Prunes, writes to `output` and returns the measurements; `output` appears whole or not at all.

    Raises:
        ConfigError: the output folder may not be written.
    """
    masks = MaskFile.read(request.from_masks) if request.from_masks else None
    if masks:
        request = _as_the_masks_say(request, masks)
    config = settled(request.as_comparison(), registry)
    check_plugins(config, registry)
    exporter = registry.build("exporter", request.exporter)
    read = inputs(config) | ({"the masks": masks.folder} if masks else {})
    with new_folder(output, overwrite, read) as place:
        harness = open_harness(config, registry, reporter, budgets=masks is None)
        check_exportable(exporter, harness.loaded)
        return _pruned(request, config, masks, exporter, Decider(harness), place)


def _pruned(
    request: Pruning,
    config: Comparison,
    masks: MaskFile | None,
    exporter: Exporter,
    decider: Decider,
    place: NewFolder,
) -> Outcome:
    harness = decider.harness
    reporter = harness.reporter
    with harness.compactor:
        pruned, cost, terms = _apply(masks, request, decider) if masks else _decide(config, decider)
        budget = str(terms.target) if terms and terms.target.sparsity is None else None
        achieved = terms.spent(pruned.selection) if terms and budget else None
        in_memory = harness.evaluate("the model cut in memory", pruned)
        dense = harness.dense
    loaded = harness.loaded
    with place.filled() as folder:
        with reporter.task("writing the model", 0), harness.watched(("exporter", request.exporter)):
            report = exporter.export(pruned, folder)
        with reporter.task("reading it back", 0), harness.watched(("exporter", request.exporter)):
            dtype = str(loaded.model.dtype).removeprefix("torch.")
            device, trust = str(loaded.model.device), request.trust_remote_code
            reloaded = exporter.load(folder, dtype=dtype, device=device, trust_remote_code=trust)
        evaluator = Evaluator(harness.evaluation_windows)
        with reporter.task("perplexity of the model read back", len(evaluator.batches)) as task:
            evaluation = evaluator.dense(reloaded.model, lambda done, total: task.update(done))
        outcome = Outcome(
            report=dataclasses.replace(report, path=place.path),
            sparsity=pruned.selection.sparsity,
            budget=budget,
            budget_achieved=achieved,
            dense=dense,
            in_memory=in_memory,
            reloaded=evaluation,
            dense_parameters=harness.layout.total_parameters,
            dense_bytes=harness.stored_bytes,
            cost=cost,
        )
        write_record(folder, outcome.to_json())
    return outcome


def _as_the_masks_say(request: Pruning, masks: MaskFile) -> Pruning:
    decided = request.model_fields_set & {"granularity", "initializer", "estimator", "scope", "scale", "seed"}
    if decided:
        names = ", ".join(f"--{name}" for name in sorted(decided))
        raise ConfigError(
            f"the masks in {masks.folder} have decided {names}; leave it out, or prune without --from-masks."
        )
    return request if "model" in request.model_fields_set else request.model_copy(update={"model": masks.base_name})


def _apply(masks: MaskFile, request: Pruning, decider: Decider) -> tuple[PrunedModel, Cost, PricedBudget | None]:
    """Returns the masks as they are, or selected anew and repaired as before, or with another repair."""
    harness, terms = decider.harness, None
    if request.budget is not None:
        rule = masks.rule()
        terms = price_budget(
            BudgetSpec.parse(request.budget), masks.space(harness.loaded), rule.scope, rule.min_keep, harness
        )
    pruned = masks.apply(harness.loaded, request.sparsity, terms)
    asked = "repair" in request.model_fields_set
    if not asked and request.sparsity is None and terms is None:
        return pruned, Cost(), None
    spec = request.repair if asked else str(masks.recipe.get("repair", NO_REPAIR))
    pruned, cost = decider.repaired(pruned, spec, int(masks.recipe.get("seed") or 0))
    return pruned, cost, terms


def _decide(config: Comparison, decider: Decider) -> tuple[PrunedModel, Cost, PricedBudget]:
    cell, harness = cells(config)[-1], decider.harness
    assert isinstance(cell, Pruned)
    decision = decider.decide(cell)
    texts = {role: text.sha256 for role, text in harness.texts.items()}
    recipe = cell.model_dump(mode="json") | {"min_keep": config.min_keep, "revision": config.revision, "texts": texts}
    recipe["bos"] = config.bos
    return dataclasses.replace(decision.pruned, recipe=recipe), decision.cost, decision.terms
