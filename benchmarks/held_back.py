"""How many windows are enough to choose the pooling of a metric: what choosing by few of them costs.

    python benchmarks/held_back.py --output benchmarks/results/held_back.json

Every pooling's selection runs on the same windows, which the metric has not looked at. Then a few of them choose,
`--draws` times. The loss of what they chose, on all windows, is compared with the lowest.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click
import torch
from mask_losses import window_losses
from torch import Tensor

from polyprune_core.config.cell import Metric
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.windows import held_back_windows
from polyprune_core.plugins.registry import load_registry
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.opening import open_harness
from polyprune_core.runs.pooling import SCALE_NAMES, SCOPE_NAMES
from polyprune_core.utils.environment import environment
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.rng import generator

SPARSITIES = (0.2, 0.3)
METRICS = ("thinet", "flap", "wanda", "llm-pruner", "magnitude")
CHOOSERS = (2, 4, 8, 16, 32)


def losses_by_pooling(harness: Harness, metric: str, sparsity: float, windows: Tensor) -> Tensor:
    """Returns (S, N): the loss in nats per token of each of S different selections on each of N windows."""
    decider, kept = Decider(harness), dict[bytes, Tensor]()
    for scope, scale in itertools.product(SCOPE_NAMES, SCALE_NAMES):
        pooling = {"scope": scope, "scale": scale}
        cell = {"granularity": "head+channel", "initializer": metric, "sparsity": sparsity, **pooling}
        decision = decider.decide(Metric.model_validate(cell))
        keep = decision.selection.keep
        kept.setdefault(keep.numpy().tobytes(), keep)
    masks = torch.stack(list(kept.values()))
    parts = [window_losses(harness.compactor, decision.pruned.space, masks, ids[None]) for ids in windows]
    return torch.cat(parts, dim=1).double()


def regret(losses: Tensor, count: int, draws: int) -> tuple[float, float]:
    """Returns how much more than the lowest loss what `count` of the windows choose loses: the mean and the worst."""
    rng, means = generator(0, "windows that choose"), losses.mean(dim=1)
    chosen = [
        int(losses[:, torch.randperm(losses.shape[1], generator=rng)[:count]].mean(dim=1).argmin())
        for _ in range(draws)
    ]
    over = means[chosen] - means.min()
    return float(over.mean()), float(over.max())


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--calibration", default="wiki.valid.raw+builtin:pydocs", show_default=True)
@click.option("--windows", default=64, show_default=True, help="Windows of 128 tokens that every selection runs on.")
@click.option("--draws", default=400, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(model: str, calibration: str, windows: int, draws: int, output: Path) -> None:
    """Measure what it costs to choose a pooling by few windows."""
    texts = {"calibration": calibration, "evaluation": ("builtin:prose",), "limit": 1}
    settings = Comparison.model_validate({"model": model, "dtype": "bfloat16", **texts})
    harness = open_harness(settings, load_registry(), Reporter(), budgets=False)
    held = held_back_windows(harness.windows.calibration, settings.calibration_samples, 0, windows)
    results: list[dict[str, Any]] = []
    with harness.compactor:
        for metric, sparsity in itertools.product(METRICS, SPARSITIES):
            losses = losses_by_pooling(harness, metric, sparsity, held)
            for count in CHOOSERS:
                mean, worst = regret(losses, count, draws)
                results.append({"metric": metric, "sparsity": sparsity, "windows": count, "mean": mean, "worst": worst})
            click.echo(
                f"{metric} at {sparsity:g}: {len(losses)} selections, losses {losses.mean(dim=1).tolist()}", err=True
            )
    record = {
        "environment": environment(),
        "model": {"name": model, "sha256": harness.loaded.sha256, "dtype": settings.dtype},
        "calibration": calibration,
        "windows": len(held),
        "draws": draws,
        "results": results,
    }
    output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
