"""What one search step costs beside its forward passes: drawing, gradient, step, projection, records, checkpoint.

    python benchmarks/step_overhead.py --output benchmarks/results/step_overhead.json

Every policy with every estimator it takes runs the search itself on the units of the model, losses made up instead of
measured; real forward passes are timed in between. Times are those of the processor, on one thread, so that what else
the machine does stays out of them.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.contracts import GradientEstimator
from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.plugins.validation import check_estimator
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Scores
from polyprune_core.search.checkpoint import SECONDS_BETWEEN, SHARE_OF_TIME, Checkpoint, pack
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.policies import FAMILIES, Start
from polyprune_core.search.trace import StepRecord
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.rng import generator

# Masks a step, sequences a batch: the same number of tokens.
SHAPES = [(2, 8), (16, 2)]


class MadeUp:
    """Stands for an objective: random losses and slopes, and the seconds it took to make them up."""

    vocabulary = 49152

    def __init__(self, space: MaskSpace) -> None:
        self.space, self.rng = space, generator(0, "made-up losses")
        self.forward_passes = self.forward_tokens = self.backward_passes = 0
        self.seconds = 0.0

    def losses(self, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns (K,) for masks (K, U)."""
        start = time.process_time()
        losses = 4 + torch.rand(len(masks), generator=self.rng)
        self.seconds += time.process_time() - start
        return losses

    def gradients(self, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (K,) and (K, U) for gates (K, U)."""
        start = time.process_time()
        slopes = torch.randn(gates.shape, generator=self.rng)
        self.seconds += time.process_time() - start
        return self.losses(gates, ids), slopes


class WrittenOnce(Checkpoint):
    """A checkpoint that is written after the second step only, and the seconds that took."""

    seconds: float | None = None
    steps = 0

    def keep(self, state: Callable[[], Any]) -> None:
        """Writes the state, once."""
        self.steps += 1
        if self.steps == 2:
            start = time.process_time()
            write_atomically(self.path, pack(state(), self.cell))
            self.seconds = time.process_time() - start


def pairs(registry: Registry, masks: int) -> Iterator[tuple[str, str, GradientEstimator]]:
    """Yields each policy with each estimator that it takes."""
    for policy in FAMILIES:
        for item in registry.all("estimator"):
            name = item.provider.name
            estimator = registry.build("estimator", name)
            try:
                check_estimator(name, estimator, masks, policy)
            except ConfigError:
                continue
            yield policy, name, estimator


def overhead(
    start: Start, policy: str, estimator: GradientEstimator, masks: int, steps: int, folder: Path
) -> tuple[list[float], float]:
    """Returns the seconds of each step beside its losses, the first two left out, and those of one checkpoint."""
    family, objective = FAMILIES[policy](start), MadeUp(start.space)
    options = SearchOptions(steps + 2, masks, 1e-3, start.budget.sparsity)
    checkpoint = WrittenOnce(folder / "checkpoint", "")
    ends, inside = [], []

    def on_step(record: StepRecord) -> None:
        ends.append(time.process_time())
        inside.append(objective.seconds)

    search(
        family,
        family.start(),
        objective,  # type: ignore[arg-type]
        estimator,
        repeat(torch.zeros(1, 1, dtype=torch.long)),
        options,
        generator(0, "masks"),
        on_step,
        checkpoint,
    )
    checkpoint.remove()
    assert checkpoint.seconds is not None
    spans = [b - a - (d - c) for (a, b), (c, d) in zip(pairwise(ends), pairwise(inside), strict=True)]
    return spans[1:], checkpoint.seconds


def checkpoint_share(seconds: float) -> float:
    """Returns the largest share of a search's time that checkpoints of so many seconds take."""
    return seconds / (seconds + max(SECONDS_BETWEEN, seconds / SHARE_OF_TIME))


def measure(model: Any, registry: Registry, sparsity: float, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Returns one record for each shape of a step, policy and estimator."""
    layout = describe(model)
    groups = [g for part in ("head", "channel") for g in registry.build("granularity", part).groups(layout)]
    space = MaskSpace(layout, groups, "head+channel")
    start = Start(
        space, Scores(torch.rand(len(space), generator=generator(0, "scores")), "random"), SelectionRule(sparsity)
    )
    policy = FAMILIES["probabilities"](start).policy(start.keep_prob(), sparsity)
    records: list[dict[str, Any]] = []
    with Compactor(model, layout) as compactor:
        objective = Objective(compactor, space)
        for masks, batch in SHAPES:
            ids = torch.randint(model.config.vocab_size, (batch, 128), generator=generator(0, "tokens"))
            drawn = policy.sample(2, generator(0, "masks")).masks
            objective.losses(drawn, ids)
            forwards: dict[str, float] = {}
            rows = []
            for name, estimator_name, estimator in pairs(registry, masks):
                if name not in forwards:
                    before = time.process_time()
                    objective.losses(drawn, ids)
                    forwards[name] = (time.process_time() - before) / len(drawn)
                spans, written = overhead(start, name, estimator, masks, steps, folder)
                row = {"policy": name, "estimator": estimator_name, "milliseconds": 1000 * statistics.median(spans)}
                rows.append(row | {"checkpoint_milliseconds": 1000 * written, "checkpoint": checkpoint_share(written)})
            forward = 1000 * masks * statistics.median(forwards.values())
            shape = {"masks": masks, "batch": [batch, 128], "forward_milliseconds": forward}
            records += [shape | row | {"of_forward": row["milliseconds"] / forward} for row in rows]
    return records


@click.command()
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--sparsity", default=0.3, show_default=True)
@click.option("--steps", default=8, show_default=True, help="Steps of each policy and estimator.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(model: str, sparsity: float, steps: int, output: Path | None) -> None:
    """Time a search step beside its forward passes."""
    torch.set_num_threads(1)
    loaded = load_model(model)
    with tempfile.TemporaryDirectory() as folder:
        records = measure(loaded.model, load_registry(), sparsity, steps, Path(folder))
    table = Table("masks x batch", "policy", "estimator", "ms", "of the forwards", "checkpoint at most")
    for r in records:
        shape, part = f"{r['masks']} x {r['batch'][0]}", f"{r['of_forward']:.1%}"
        table.add_row(shape, r["policy"], r["estimator"], f"{r['milliseconds']:.1f}", part, f"{r['checkpoint']:.1%}")
    Console().print(table)
    if output:
        record = {"environment": environment(), "model": model, "sha256": loaded.sha256, "sparsity": sparsity}
        output.write_text(json.dumps(record | {"steps": steps, "results": records}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
