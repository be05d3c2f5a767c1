"""A pruned model in memory, what it scores there, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from polyprune_core.evaluation.perplexity import Evaluation
from polyprune_core.plugins.contracts import check_exportable
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import ExportReport
from polyprune_core.runs.added_biases import check_added
from polyprune_core.runs.decision import Cost
from polyprune_core.runs.export import write_out
from polyprune_core.runs.outcome import Outcome
from polyprune_core.utils.outputs import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class PruningResult:
    """A pruned model in memory, and its perplexity there.

    Attributes:
        pruned: the dense model and the decision which units stay.
        evaluations: the perplexity of the smaller model and its agreement with the dense model, one record for each
            text and length. The record for the first text at the first length comes first.
        dense_evaluations: the same of the dense model on the same windows; empty if it was not measured.
        cost: what the decision cost.
        budget: the budget as asked, if it was not a sparsity; otherwise None.
        budget_achieved: what was achieved of that budget, in its own terms.
        written: what was written to disk and measured after reading it back; None if nothing was written.
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
        """The evaluation of the smaller model on the first text at the first length."""
        return self.evaluations[0]

    @property
    def dense(self) -> Evaluation | None:
        """The evaluation of the dense model on the first text at the first length; None if it was not measured."""
        return self.dense_evaluations[0] if self.dense_evaluations else None

    @cached_property
    def model(self) -> PreTrainedModel:
        """The smaller model in eval mode, on the device and in the dtype of the dense one.

        It is made when first asked for. Parameters that nothing was cut from share memory with `pruned.base.model`.
        """
        return self.pruned.build()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, which is that of the dense model."""
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
            exporter: NAME or NAME:option=value, as for `--exporter`.
            output: the folder. It must not exist, unless `overwrite` is True.
            overwrite: whether to replace the folder if polyprune wrote what is there.
            verify: whether to read the model back and compare its logits with those of the model in memory.

        Raises:
            PolypruneError: there is no such exporter, the folder cannot be written, or the model that is read back has
                other logits.
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
