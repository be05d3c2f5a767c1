"""What pruning a model and writing it came to, for people and for scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.errors import counted
from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.pruning.types import ExportReport
from polyprune_core.runs.decision import Cost
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import size_told
from polyprune_core.version import __version__


@dataclass(frozen=True)
class Outcome:
    """A pruned model on disk, and its perplexity as read back, beside the dense model and the pruned model in memory.

    Attributes:
        report: the exporter's report on the files.
        sparsity: the fraction of the prunable parameters that was removed.
        budget: the budget as asked, if it was not a sparsity; otherwise None.
        budget_achieved: what was achieved of that budget, in its own terms.
        shapes: the shapes that were asked for, or None.
        dense: the evaluations of the dense model, one for each text and length.
        in_memory: those of the pruned model in memory, in the same order.
        reloaded: those of the pruned model as read back from disk, in the same order.
        calibration: the names of the texts that the decision looked at.
        dense_parameters: the number of parameters of the dense model.
        active_parameters: the number of parameters that the pruned model uses for one token; None if it uses all.
        dense_active_parameters: the same for the dense model.
        dense_bytes: the size of the dense model's weights in bytes.
        cost: what the decision cost.
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
        """Returns the outcome as lines for people to read."""
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
        """Returns the outcome as JSON values, without any path of this machine."""
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
