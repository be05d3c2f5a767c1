"""One model, cut for good: decided, exported, read back from disk, measured."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core import __version__
from polyprune_core.artefact import PrunedModel
from polyprune_core.config import Cell, Comparison, Pruning, cells
from polyprune_core.environment import environment
from polyprune_core.errors import ConfigError
from polyprune_core.evaluate import Evaluation, Evaluator
from polyprune_core.harness import Cost, Decision, Harness, check_plugins
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
        kept = self.report.parameters / self.dense_parameters
        return [
            f"{self.report.path} ({self.report.format})",
            f"  sparsity      {self.sparsity:.4f} of the prunable parameters removed; {kept:.1%} of all {self.dense_parameters:,} kept",
            f"  on disk       {self.report.bytes / 1e6:.1f} MB; the dense weights are {self.dense_bytes / 1e6:.1f} MB",
            f"  perplexity    {self.reloaded.perplexity:.4f} read back from disk; {self.in_memory.perplexity:.4f} in memory; dense {self.dense.perplexity:.4f}",
            f"  search        {self.cost.forward_tokens:,} forward tokens, {self.cost.backward_passes} backward passes, {self.cost.seconds:.0f} s",
            f"  load it with  {self.report.reload}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome for scripts; no path of this machine."""
        record = dataclasses.asdict(self)
        record["report"]["path"] = self.report.path.name
        return {"polyprune": __version__, "environment": environment(), **record}


def prune(request: Pruning, registry: Registry, output: Path, overwrite: bool, reporter: Reporter) -> Outcome:
    """Prunes, writes to `output` and returns the measurements; `output` appears whole or not at all.

    Raises:
        ConfigError: the output folder exists and is not empty.
    """
    config = request.as_comparison()
    check_plugins(config, registry)
    exporter = registry.build("exporter", request.exporter)
    _check_output(output, overwrite)
    harness = open_harness(config, registry, reporter)
    with harness.compactor:
        space, decision, recipe = _decide(request, config, harness)
        in_memory = harness.evaluate("the model cut in memory", space, decision.selection)
        dense = harness.dense
    loaded = harness.loaded
    pruned = PrunedModel(loaded, space, decision.selection, decision.scores, decision.policy, recipe)
    with _whole_folder(output, overwrite) as folder:
        report = exporter.export(pruned, folder)
        reloaded = exporter.load(folder, dtype=str(loaded.model.dtype).removeprefix("torch."), device=str(loaded.model.device))
        evaluator = Evaluator(harness.evaluation_windows)
        with reporter.task("perplexity of the model read back", len(evaluator.batches)) as task:
            evaluation = evaluator.dense(reloaded.model, lambda done, total: task.update(done))
        outcome = Outcome(
            report=dataclasses.replace(report, path=output, reload=report.reload.replace(str(folder), str(output))),
            sparsity=decision.selection.sparsity,
            dense=dense,
            in_memory=in_memory,
            reloaded=evaluation,
            dense_parameters=harness.layout.total_parameters,
            dense_bytes=sum(p.numel() * p.element_size() for p in loaded.model.parameters()),
            cost=decision.cost,
        )
        write_json(folder / "polyprune.json", outcome.to_json())
    return outcome


def _decide(request: Pruning, config: Comparison, harness: Harness) -> tuple[Any, Decision, dict[str, Any]]:
    if request.from_masks is None:
        cell = _cell(config)
        recipe = cell.model_dump(mode="json") | {"texts": {role: t.sha256 for role, t in harness.texts.items()}}
        return harness.space(request.granularity), harness.decide(cell), recipe
    from polyprune_core.maskfile import MaskFile

    file = MaskFile.read(request.from_masks)
    space = harness.space(file.granularity)
    pruned = file.reapply(harness.loaded, space, request.sparsity)
    return space, Decision(pruned.selection, pruned.scores, pruned.policy, None, Cost()), pruned.recipe


def _cell(config: Comparison) -> Cell:
    return cells(config)[-1]


def _check_output(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output} is a file; give a folder as --output.")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConfigError(f"{output} is not empty; give another --output, or --overwrite to replace it.")


@contextmanager
def _whole_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its place when the block succeeds and vanishes when it fails."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise ConfigError(f"cannot write beside {output}: {error.strerror}. Give another --output.") from error
    try:
        yield folder
        folder.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
