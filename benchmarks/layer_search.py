"""Whole layers of SmolLM2-135M: few enough to know the best pair, and to see how near each criterion comes to it.

    cd FOLDER-WITH-WIKITEXT && python benchmarks/layer_search.py --output benchmarks/results/layer_search.json

Every criterion sees the same few windows of WikiText-2's validation split, so that greedy removal, the searches and the
exhaustive truth are after the same number; the test split says what it is worth. A mask's loss does not change: it is
looked up in the file where it was measured before, also by an earlier run, and its cost is counted all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Metric, Search
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.losses import Objective
from polyprune_core.evaluation.windows import sample_windows
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores, Selection
from polyprune_core.runs.decision import Decider
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.opening import open_harness
from polyprune_core.runs.preflight import settled
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.progress import Reporter

METRICS = ("block-influence", "thinet", "wanda", "llm-pruner", "magnitude", "random")
POLICIES = {"gaussian": "adam", "probabilities": "sgd"}
ESTIMATORS = ("rloo", "antithetic")
STARTS = ("block-influence", "wanda")
# All are tried on pairs, at the whole budget; the best by calibration loss is used elsewhere.
RATES = {"gaussian": (0.05, 0.1, 0.3, 1.0), "probabilities": (1e-3, 3e-2, 3e-1)}
SHARES = (0.25, 0.5)  # of what greedy removal costs; the whole is tried too


@dataclass(frozen=True)
class Way:
    """One way to choose `removed` layers; a search has an estimator, a policy, a rate and a budget in tokens."""

    removed: int
    criterion: str
    seed: int = 0
    estimator: str | None = None
    policy: str | None = None
    learning_rate: float | None = None
    forward_tokens: int | None = None


class Ledger:
    """What was measured, by removed layers: calibration losses in nats and perplexities; kept in the output file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.told: dict[str, Any] = found.get("told", {})
        self.rows: list[dict[str, Any]] = []
        self.losses: dict[str, float] = found.get("losses", {})
        self.perplexities: dict[str, float] = found.get("perplexities", {})
        self.unsaved, self.environment = 0, environment()

    def require_same(self, told: dict[str, Any]) -> None:
        """Raises UsageError where the file holds what was measured on something else."""
        if self.told and self.told != told:
            raise click.UsageError(f"{self.path} was made with {self.told}, not {told}; give another --output.")
        self.told = told

    def measured(self) -> None:
        """Counts a measurement and saves now and then."""
        self.unsaved += 1
        if self.unsaved >= 20:
            self.save()

    def save(self) -> None:
        """Writes everything."""
        self.unsaved = 0
        parts = {"told": self.told, "environment": self.environment, "losses": self.losses}
        parts |= {"perplexities": self.perplexities, "rows": self.rows}
        write_atomically(self.path, json.dumps(parts, indent=1) + "\n")


def named(keep: Tensor) -> str:
    """Returns the removed layers of a mask (U,), as "3,17"."""
    return ",".join(map(str, (~keep).nonzero().flatten().tolist()))


def remembering(ledger: Ledger) -> type[Objective]:
    """Returns an Objective that looks masks up in the ledger and counts each as one pass."""

    class Remembering(Objective):
        def losses(self, masks: Tensor, ids: Tensor) -> Tensor:
            for mask in masks:
                if named(mask) in ledger.losses:
                    self.count(ids.numel())
                else:
                    ledger.losses[named(mask)] = float(super().losses(mask[None], ids)[0])
                    ledger.measured()
            return torch.tensor([ledger.losses[named(mask)] for mask in masks])

    return Remembering


def decide(harness: Harness, settings: Comparison, way: Way) -> tuple[Selection, int]:
    """Returns what the harness selects and the forward tokens it spent."""
    search = {"policy": way.policy, "learning_rate": way.learning_rate, "forward_tokens": way.forward_tokens}
    if way.policy:
        search["optimizer"] = POLICIES[way.policy]
    asked_for = settings.model_copy(update={name: value for name, value in search.items() if value})
    harness.settings = settled(asked_for, harness.registry)
    asked = {"granularity": "layer", "initializer": way.criterion, "seed": way.seed}
    asked["target"] = BudgetSpec.of_sparsity(way.removed / harness.layout.num_layers)
    cell = Search(estimator=way.estimator, **asked) if way.estimator else Metric(scale="raw", **asked)
    decision = Decider(harness).decide(cell)
    return decision.selection, decision.cost.forward_tokens


def best_pair(objective: Objective, space: MaskSpace, ids: Tensor) -> tuple[Selection, int]:
    """Returns the pair of layers whose absence costs least, of all pairs, and the tokens that this took."""
    pairs = torch.tensor(list(combinations(range(len(space)), 2)))
    masks = torch.ones(len(pairs), len(space), dtype=torch.bool).scatter_(1, pairs, False)
    keep = masks[int(objective.losses(masks, ids).argmin())]
    return Selection(keep, int(space.cost[keep].sum()), space.total_cost), len(masks) * ids.numel()


class Study:
    """Runs ways one after another; rows go to the ledger."""

    def __init__(
        self,
        harness: Harness,
        settings: Comparison,
        ledger: Ledger,
        seeds: tuple[int, ...],
        removed: tuple[int, ...],
    ) -> None:
        self.harness, self.settings, self.ledger, self.seeds = harness, settings, ledger, seeds
        self.removed = removed
        self.ids, self.space = harness.windows.calibration, harness.space("layer")
        self.objective = remembering(ledger)(harness.compactor, self.space)
        self.selections: dict[str, Selection] = {}

    def run(self) -> None:
        """Truth and metrics first, then searches; the perplexity of whatever was chosen is measured once."""
        self._row(Way(2, "exhaustive"), *best_pair(self.objective, self.space, self.ids))
        greedy = {removed: self._greedy(removed) for removed in {2, *self.removed}}
        for removed in greedy:
            for criterion in METRICS:
                for seed in self.seeds if criterion == "random" else (0,):
                    self._try(Way(removed, criterion, seed))
        rates = {}
        for policy in POLICIES:
            for start in STARTS:
                rates[policy, start] = self._best_rate(policy, start, greedy[2])
                self._spend(2, policy, start, rates[policy, start], [int(share * greedy[2]) for share in SHARES])
            self._evaluate()
        for removed in self.removed:
            for (policy, start), rate in rates.items():
                self._spend(removed, policy, start, rate, [int(share * greedy[removed]) for share in (*SHARES, 1)])
                self._evaluate()

    def _spend(self, removed: int, policy: str, start: str, rate: float, budgets: list[int]) -> None:
        for tokens in budgets:
            for way in self._searches(removed, policy, start, rate, tokens):
                self._try(way)

    def _evaluate(self) -> None:
        for row in self.ledger.rows:
            row["perplexity"] = self._perplexity(",".join(map(str, row["layers"])))
        self.ledger.save()

    def _greedy(self, removed: int) -> int:
        until = removed / len(self.space)
        return self._try(Way(removed, f"sleb:windows={len(self.ids)}:until={until}"))["forward_tokens"]

    def _best_rate(self, policy: str, start: str, tokens: int) -> float:
        rates = RATES[policy]
        found = {
            rate: mean(self._try(way)["calibration_loss"] for way in self._searches(2, policy, start, rate, tokens))
            for rate in rates
        }
        return min(rates, key=found.__getitem__)

    def _searches(self, removed: int, policy: str, start: str, rate: float, tokens: int) -> Iterator[Way]:
        way = Way(removed, start, policy=policy, learning_rate=rate, forward_tokens=tokens)
        return (replace(way, estimator=name, seed=seed) for name in ESTIMATORS for seed in self.seeds)

    def _try(self, way: Way) -> dict[str, Any]:
        return self._row(way, *decide(self.harness, self.settings, way))

    def _row(self, way: Way, selection: Selection, tokens: int) -> dict[str, Any]:
        layers = named(selection.keep)
        loss = float(self.objective.losses(selection.keep[None], self.ids)[0])
        same_size = [value for key, value in self.ledger.losses.items() if key.count(",") == way.removed - 1]
        row: dict[str, Any] = asdict(way) | {
            "layers": [int(layer) for layer in layers.split(",")],
            "calibration_loss": loss,
            "place_of_all_pairs": 1 + sum(value < loss for value in same_size) if way.removed == 2 else None,
            "forward_tokens": tokens,
            "perplexity": self.ledger.perplexities.get(layers),
        }
        self.selections[layers] = selection
        self.ledger.rows.append(row)
        self.ledger.save()
        click.echo(f"{way}: without {layers}, loss {loss:.4f}", err=True)
        return row

    def _perplexity(self, layers: str) -> float:
        if layers not in self.ledger.perplexities:
            selection = self.selections[layers]
            pruned = PrunedModel(self.harness.loaded, self.space, selection, Scores(selection.keep.float(), "layers"))
            evaluation = self.harness.evaluate(f"without {layers}", pruned)[0]
            self.ledger.perplexities[layers] = evaluation.perplexity
            self.ledger.save()
            click.echo(f"without {layers}: perplexity {evaluation.perplexity:.2f}", err=True)
        return self.ledger.perplexities[layers]


@click.command()
@click.option("--calibration", default="wiki.valid.raw", show_default=True)
@click.option("--evaluation", default="wiki.test.raw", show_default=True)
@click.option("--windows", default=4, show_default=True, help="Calibration windows of 128 tokens.")
@click.option("--limit", default=160, show_default=True, help="Evaluation windows of 128 tokens.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds of the searches and of random choice.")
@click.option("--removed", multiple=True, type=int, help="Layers to remove beside 2; 6 take an hour and a half.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write and to go on from.")
def main(
    calibration: str, evaluation: str, windows: int, limit: int, seeds: str, removed: tuple[int, ...], output: Path
) -> None:
    """Compare every way to remove 2 of 30 layers, and more."""
    settings = Comparison(
        model="smollm2-135m",
        dtype="bfloat16",
        granularity="layer",
        calibration=calibration,
        evaluation=evaluation,
        calibration_samples=windows,
        batch_size=windows,
        masks_per_step=2,
        limit=limit,
    )
    harness = open_harness(settings, load_registry(), Reporter(), budgets=False)
    harness.windows.calibration = sample_windows(harness.windows.calibration, windows, 0)
    ledger = Ledger(output)
    read = {"calibration": harness.texts.calibration, "evaluation": harness.texts.evaluations[0]}
    texts = {role: {"name": text.name, "sha256": text.sha256} for role, text in read.items()}
    model = {"model": settings.model, "sha256": harness.loaded.sha256, "dtype": settings.dtype}
    ledger.require_same({**model, **texts, "windows": windows, "limit": limit, "seq_len": settings.seq_len})
    remembered = remembering(ledger)
    with (
        mock.patch("polyprune_core.runs.decision.Objective", remembered),
        mock.patch("polyprune_core.evaluation.calibration.Objective", remembered),
        harness.compactor,
    ):
        Study(harness, settings, ledger, tuple(map(int, seeds.split(","))), removed).run()


if __name__ == "__main__":
    main()
