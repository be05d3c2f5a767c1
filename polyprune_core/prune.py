"""One model, cut for good: decided, exported, read back from disk, measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core import __version__
from polyprune_core.artefact import PrunedModel
from polyprune_core.config import Comparison, Pruning, cells
from polyprune_core.environment import environment
from polyprune_core.errors import ConfigError
from polyprune_core.evaluate import Evaluation, Evaluator
from polyprune_core.folder import RECORD, check_output, whole_folder
from polyprune_core.harness import Cost, Harness, check_plugins
from polyprune_core.maskfile import MaskFile
from polyprune_core.pipeline import open_harness
from polyprune_core.plugins.registry import Registry
from polyprune_core.progress import Reporter
from polyprune_core.store import write_json
from polyprune_core.types import ExportReport


@dataclass(frozen=True)
class Outcome:
    """A pruned model on disk: what it scores as read back, beside the dense model and the model cut in memory."""

    report: ExportReport
    sparsity: float
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
        rows = {
            "sparsity": f"{self.sparsity:.4f} of the prunable parameters removed",
            "parameters": f"{report.parameters:,} of {self.dense_parameters:,}",
            "on disk": f"{report.bytes / 1e6:.1f} MB in all; the dense weights are {self.dense_bytes / 1e6:.1f} MB",
            "perplexity": f"{perplexities}; dense {self.dense.perplexity:.4f}",
            "cost": f"{cost.forward_tokens:,} forward tokens, {cost.backward_passes} backward passes",
        }
        lines = [f"{report.path} ({report.format})", *(f"  {name:<11} {text}" for name, text in rows.items())]
        return [*lines, "", *report.reload.strip().replace("(DIR", f"({str(report.path)!r}").splitlines()]

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
        ConfigError: the output folder exists and is not empty.
    """
    masks = MaskFile.read(request.from_masks) if request.from_masks else None
    if masks:
        request = _as_the_masks_say(request, masks)
    config = request.as_comparison()
    check_plugins(config, registry)
    exporter = registry.build("exporter", request.exporter)
    output = check_output(output, overwrite)
    harness = open_harness(config, registry, reporter, budgets=masks is None)
    with harness.compactor:
        pruned, cost = (masks.apply(harness.loaded, request.sparsity), Cost()) if masks else _decide(config, harness)
        in_memory = harness.evaluate("the model cut in memory", pruned.space, pruned.selection)
        dense = harness.dense
    loaded = harness.loaded
    with whole_folder(output) as folder:
        report = exporter.export(pruned, folder)
        reloaded = exporter.load(
            folder, dtype=str(loaded.model.dtype).removeprefix("torch."), device=str(loaded.model.device)
        )
        evaluator = Evaluator(harness.evaluation_windows)
        with reporter.task("perplexity of the model read back", len(evaluator.batches)) as task:
            evaluation = evaluator.dense(reloaded.model, lambda done, total: task.update(done))
        outcome = Outcome(
            report=dataclasses.replace(report, path=output),
            sparsity=pruned.selection.sparsity,
            dense=dense,
            in_memory=in_memory,
            reloaded=evaluation,
            dense_parameters=harness.layout.total_parameters,
            dense_bytes=harness.weights_bytes,
            cost=cost,
        )
        write_json(folder / RECORD, outcome.to_json())
    return outcome


def _as_the_masks_say(request: Pruning, masks: MaskFile) -> Pruning:
    decided = request.model_fields_set & {"granularity", "initializer", "estimator", "scope", "scale", "seed"}
    if decided:
        names = ", ".join(f"--{name}" for name in sorted(decided))
        raise ConfigError(
            f"the masks in {masks.folder} have decided {names}; leave it out, or prune without --from-masks."
        )
    return request if "model" in request.model_fields_set else request.model_copy(update={"model": masks.base_name})


def _decide(config: Comparison, harness: Harness) -> tuple[PrunedModel, Cost]:
    cell = cells(config)[-1]
    decision = harness.decide(cell)
    texts = {role: text.sha256 for role, text in harness.texts.items()}
    recipe = cell.model_dump(mode="json") | {"min_keep": config.min_keep, "revision": config.revision, "texts": texts}
    space = harness.space(cell.granularity or "")
    pruned = PrunedModel(harness.loaded, space, decision.selection, decision.scores, decision.policy, recipe)
    return pruned, decision.cost
