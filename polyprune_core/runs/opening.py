"""A comparison's model and texts, loaded and described."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from polyprune_core.config.cell import Metric, Pruned, Search
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.tasks import Tasks
from polyprune_core.evaluation.text import Text, load_texts
from polyprune_core.evaluation.windows import RUN, TELLING_OVERLAP
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.contracts import Exporter, check_exportable
from polyprune_core.plugins.registry import Registry
from polyprune_core.runs.added_biases import check_targets
from polyprune_core.runs.asked_shapes import check_shapes
from polyprune_core.runs.cell_identity import identity
from polyprune_core.runs.harness import Harness
from polyprune_core.utils.environment import environment
from polyprune_core.utils.progress import Reporter
from polyprune_core.version import __version__


def open_harness(
    config: Comparison,
    registry: Registry,
    reporter: Reporter,
    budgets: bool = True,
    exporter: Exporter | None = None,
) -> Harness:
    """Loads the texts and the model of a comparison, and with `budgets` checks that every budget can be met.

    `exporter`: what is written afterwards, which has to hold a smaller form of the model.

    Raises:
        PolypruneError: anything asked for cannot be had; nothing has been run yet.
    """
    texts = load_texts(config.calibration, config.evaluation, config.text_column)
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
    if exporter:
        check_exportable(exporter, loaded)
    with reporter.task("cutting the texts into tokens", 0):
        harness = Harness(loaded, texts, config, registry, reporter, tasks, exporter)
    spaces = [harness.space(name) for name in config.granularity] if any(config.shapes) and budgets else []
    check_shapes(config.shapes if budgets else (), spaces, loaded, registry)
    check_targets(config.repair, config.shapes, harness.whole(), registry)
    overlaps: dict[str, float] = {}
    for cut in harness.windows.evaluated:
        overlaps[cut.text.name] = max(cut.overlap, overlaps.get(cut.text.name, 0.0))
    for name, overlap in overlaps.items():
        if overlap >= TELLING_OVERLAP:
            reporter.warn(
                f"{overlap:.0%} of what is evaluated on in {name}, in runs of {RUN} tokens, was "
                "calibrated on too: its perplexities flatter every row. Give texts that share no passages."
            )
    pruned = [cell for cell in cells(config) if isinstance(cell, Pruned)] if budgets else []
    for cell in pruned:
        harness.in_scopes(cell)
    for seed in {cell.seed for cell in pruned if _holds_text_back(cell, config, registry)}:
        harness.windows.held_back(seed)
    return harness


def _holds_text_back(cell: Pruned, config: Comparison, registry: Registry) -> bool:
    """Whether the cell chooses by loss on text that nothing of it has looked at."""
    chosen = isinstance(cell, Metric) and cell.open
    stopped = isinstance(cell, Search) and config.early_stopping is not None
    return chosen or stopped or registry.holds_text_back(cell.initializer)


def run_record(harness: Harness, config: Comparison) -> dict[str, Any]:
    """Returns what the results say of a run beside its rows."""
    return {
        "polyprune": __version__,
        "environment": environment(),
        "config": config.model_dump(mode="json"),
        "model": _model(harness),
        "texts": _texts(harness),
    }


def shared_identity(harness: Harness, config: Comparison) -> dict[str, Any]:
    """Returns what decides the results of all cells alike."""
    loaded, device = harness.loaded, harness.loaded.model.device.type
    return identity(config, loaded.sha256, loaded.path, str(loaded.model.dtype), device, harness.texts.hashes)


def _model(harness: Harness) -> dict[str, Any]:
    spaces = harness.spaces
    return {
        "name": harness.loaded.name,
        "sha256": harness.loaded.sha256,
        "source": harness.loaded.source,
        "dtype": str(harness.loaded.model.dtype).removeprefix("torch."),
        "device": str(harness.loaded.model.device),
        "parameters": harness.layout.total_parameters,
        "prunable_parameters": {name: space.total_cost for name, space in spaces.items()},
        "weights_mb": harness.weights_bytes / 1e6,
    }


def _texts(harness: Harness) -> dict[str, Any]:
    """The text of each role, and where there are several evaluations all of them, the headline first."""
    evaluations = [
        _text(harness, each.text, each.windows) | {"overlap": each.overlap} for each in harness.windows.evaluated
    ]
    found = {
        "calibration": _text(harness, harness.texts.calibration, harness.windows.calibration),
        "evaluation": evaluations[0],
    }
    return found | ({"evaluations": evaluations} if len(evaluations) > 1 else {})


def _text(harness: Harness, text: Text, windows: Tensor) -> dict[str, Any]:
    return {
        "name": text.name,
        "sha256": text.sha256,
        "windows": windows.shape[0],
        "tokens_per_window": windows.shape[1],
        "bos": harness.windows.cutter.told,
    }
