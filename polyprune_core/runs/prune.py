"""One model, cut for good: decided and measured in memory, and where asked exported, read back and measured again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import NO_REPAIR, Pruned
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison, Pruning
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import ConfigError, counted
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator, in_turn, measured
from polyprune_core.models.placement import placed
from polyprune_core.plugins.contracts import Exporter, check_exportable
from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import ExportReport
from polyprune_core.report.commands import command, portable
from polyprune_core.runs.added_biases import check_added, check_repair
from polyprune_core.runs.asked_shapes import check_shapes, held_by
from polyprune_core.runs.decision import REPAIRED_FROM, Cost, Decider
from polyprune_core.runs.engines import placement_of
from polyprune_core.runs.export import write_out
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.inputs import inputs
from polyprune_core.runs.opening import open_harness
from polyprune_core.runs.preflight import check_plugins, settled
from polyprune_core.runs.workplace import spread_over
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import size_told
from polyprune_core.utils.outputs import NewFolder, new_folder, write_record
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.threads import computing_in
from polyprune_core.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# What masks have decided, that is not asked of them again.
DECIDED = {"granularity", "initializer", "estimator", "scope", "scale", "seed", "protect"}


@dataclass(frozen=True)
class Outcome:
    """A pruned model on disk: what it scores as read back, beside the dense model and the model cut in memory.

    `dense`, `in_memory` and `reloaded` have one evaluation for each text and length, in the same order; `calibration`
    names the texts that the decision looked at.
    """

    report: ExportReport
    sparsity: float
    budget: str | None
    budget_achieved: float | None
    shapes: str | None
    dense: tuple[Evaluation, ...]
    in_memory: tuple[Evaluation, ...]
    reloaded: tuple[Evaluation, ...]
    calibration: tuple[str, ...]
    dense_parameters: int
    active_parameters: int | None
    dense_active_parameters: int | None
    dense_bytes: int
    cost: Cost

    def lines(self) -> list[str]:
        """Returns the outcome for people."""
        report, cost = self.report, self.cost
        backward = counted(cost.backward_passes, "backward pass", "backward passes")
        rows = [
            *self._budget_line(),
            ("sparsity", f"{self.sparsity:.4f} of the prunable parameters removed"),
            *([("widths", f"{ShapesSpec.parse(self.shapes).words()}, as asked")] if self.shapes else []),
            ("parameters", f"{report.parameters:,} of {self.dense_parameters:,}"),
            *self._active_line(),
            ("on disk", f"{size_told(report.bytes)} in all; the dense weights are {size_told(self.dense_bytes)}"),
            *self._perplexity_lines(),
            ("cost", f"{cost.forward_tokens:,} forward tokens, {backward}"),
        ]
        lines = [f"{report.path} ({report.format})", *(f"  {name:<11} {text}" for name, text in rows)]
        return [*lines, "", *report.reload_at(report.path).strip().splitlines()]

    def _active_line(self) -> list[tuple[str, str]]:
        if self.active_parameters is None:
            return []
        dense = f" of {self.dense_active_parameters:,}" if self.dense_active_parameters else ""
        return [("active", f"{self.active_parameters:,}{dense} run for one token")]

    def _budget_line(self) -> list[tuple[str, str]]:
        if self.budget is None or self.budget_achieved is None:
            return []
        achieved = BudgetSpec.parse(self.budget).words(self.budget_achieved)
        return [("budget", f"{self.budget} asked, {achieved} achieved")]

    def _perplexity_lines(self) -> Iterator[tuple[str, str]]:
        for dense, cut, reloaded in zip(self.dense, self.in_memory, self.reloaded, strict=True):
            part = "" if self._calibrated(dense) else ", no part of the calibration"
            divergence = "" if cut.kl_to_dense is None else f", KL to dense {cut.kl_to_dense:.4f}"
            yield (
                "perplexity",
                f"{reloaded.perplexity:.4f} read back from disk, {cut.perplexity:.4f} in memory; "
                f"dense {dense.perplexity:.4f}{divergence} ({dense.text}, {dense.seq_len} tokens{part})",
            )

    def _calibrated(self, evaluation: Evaluation) -> bool:
        return evaluation.text in self.calibration

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome for scripts; no path of this machine."""
        record = dataclasses.asdict(self)
        record["report"]["path"] = self.report.path.name
        del record["cost"]["readings"]
        sides = {name: [_scored(each) for each in getattr(self, name)] for name in ("dense", "in_memory", "reloaded")}
        record |= {name: found[0] for name, found in sides.items()}
        record["evaluations"] = [
            {"text": each.text, "seq_len": each.seq_len, "calibrated_on": self._calibrated(each)}
            | {name: found[index] for name, found in sides.items()}
            for index, each in enumerate(self.dense)
        ]
        return {"polyprune": __version__, "environment": environment(), **record}


def _scored(evaluation: Evaluation) -> dict[str, Any]:
    names = ("perplexity", "nll", "tokens", "kl_to_dense", "top1_agreement")
    return {name: getattr(evaluation, name) for name in names}


@dataclass(frozen=True, repr=False)
class PruningResult:
    """A pruned model in memory, and what it scores there.

    Attributes:
        pruned: the decision, and the dense model that it is about.
        evaluations: perplexity and agreement with the dense model, of the smaller model in memory: one record for each
            text and length, the headline first.
        dense_evaluations: the dense model on the same windows, none where it was not measured.
        cost: what the decision cost.
        budget: what was asked, where that is no sparsity.
        budget_achieved: of that budget, in its own terms.
        written: what was written to disk and read back; None where nothing was.
    """

    pruned: PrunedModel
    evaluations: tuple[Evaluation, ...]
    dense_evaluations: tuple[Evaluation, ...]
    cost: Cost
    budget: str | None = None
    budget_achieved: float | None = None
    written: Outcome | None = None

    @property
    def evaluation(self) -> Evaluation:
        """The headline: the smaller model on the first text at the first length."""
        return self.evaluations[0]

    @property
    def dense(self) -> Evaluation | None:
        """The headline of the dense model, where it was measured."""
        return self.dense_evaluations[0] if self.dense_evaluations else None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The smaller model: eval mode, device and dtype of the dense one, made when first asked for.

        What nothing was cut from shares its memory with `pruned.base.model`.
        """
        return self.pruned.build()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The dense model's tokenizer."""
        return self.pruned.base.tokenizer

    @property
    def sparsity(self) -> float:
        """The fraction of the prunable parameters that was removed."""
        return self.pruned.selection.sparsity

    def export(
        self, exporter: str, output: str | Path, *, overwrite: bool = False, verify: bool = False
    ) -> ExportReport:
        """Writes the model to the new folder `output`, which appears whole or not at all.

        Args:
            exporter: NAME or NAME:option=value, as `--exporter`.
            output: the folder; nothing is there before, unless `overwrite`.
            overwrite: replace a folder that polyprune wrote.
            verify: read it back and compare its logits with those of the model in memory.

        Raises:
            PolypruneError: no such exporter, a folder that cannot be written, or a model that reads back as another.
        """
        registry, dense = load_registry(), self.pruned.base
        writer = registry.build("exporter", exporter)
        check_added(exporter, self.pruned, registry)
        check_exportable(writer, dense)
        read = {"the model": dense.path} if dense.path else {}
        with new_folder(Path(output).expanduser(), overwrite, read) as place:
            return write_out(self.pruned, writer, place, verify).report

    def __repr__(self) -> str:
        kept, total, recipe = self.pruned.parameters, self.pruned.layout.total_parameters, self.pruned.recipe
        criterion = " → ".join(str(recipe[name]) for name in ("initializer", "estimator") if recipe.get(name))
        dense = f", dense {self.dense.perplexity:.4f}" if self.dense else ""
        return (
            f"{self.pruned.base.name} pruned by {criterion}: sparsity {self.sparsity:.4f}, {kept:,} of {total:,} "
            f"parameters, perplexity {self.evaluation.perplexity:.4f}{dense}"
        )


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
