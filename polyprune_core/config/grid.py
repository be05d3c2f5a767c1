"""The cells of a comparison: what each is, in which order they stand, and what decides their numbers."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.settings import Comparison, Scale, Scope, Settings


class Cell(BaseModel):
    """One row to be: `search` learns from `initializer`; `start` is its starting policy; `baseline` a metric alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "baseline", "start", "search"]
    granularity: str | None = None
    initializer: str | None = None
    estimator: str | None = None
    sparsity: float | None = None
    budget: str | None = None
    seed: int | None = None
    scope: Scope | None = None
    scale: Scale | None = None

    @property
    def target(self) -> BudgetSpec:
        """The budget; a sparsity is one in parameters."""
        return BudgetSpec.parse(self.budget) if self.budget else BudgetSpec.of_sparsity(self.sparsity or 0.0)

    @property
    def asked(self) -> str:
        """The budget as the user gave it."""
        return f"budget {self.budget}" if self.budget else f"sparsity {self.sparsity}"

    @property
    def label(self) -> str:
        """What the cell is called while it runs; granularity, scope and scale are left out."""
        name = f"{self.initializer} → {self.estimator}" if self.estimator else self.initializer
        return f"{name}, {self.asked}, seed {self.seed}"


# Names of what the identity of a cell holds itself: settings of a preset, weights, texts, number format and device.
NAMES = ("preset", "model", "revision", "dtype", "device", "calibration", "evaluation")
# What decides the numbers of some kinds of cells only. A setting that is not listed here decides them all.
PRUNED_ONLY = ("calibration_samples", "seq_len", "batch_size", "min_keep")
POLICY_ONLY = ("policy", "probabilities", "start_scale")
SEARCH_ONLY = (
    "steps",
    "masks_per_step",
    "forward_tokens",
    "learning_rate",
    "optimizer",
    "precondition",
    "sigma",
    "warmup",
    "averaging",
)
IGNORED = {
    "dense": (*PRUNED_ONLY, *POLICY_ONLY, *SEARCH_ONLY),
    "baseline": (*POLICY_ONLY, *SEARCH_ONLY),
    "start": SEARCH_ONLY,
    "search": ("forward_tokens",),
}


def cell_id(cell: Cell, settings: Settings, identity: dict[str, Any]) -> str:
    """Returns 16 hex digits that change with what decides the cell's result, and with nothing else.

    `identity` holds hashes and versions, of the calibration text under "calibration".
    """
    decides = settings.model_dump(include=set(Settings.model_fields))
    if cell.kind == "search":
        decides["steps"] = settings.search_steps
    decides = {name: value for name, value in decides.items() if name not in (*NAMES, *IGNORED[cell.kind])}
    if cell.kind == "dense":
        identity = {name: value for name, value in identity.items() if name != "calibration"}
    record = json.dumps([cell.model_dump(), decides, identity], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def cells(config: Comparison) -> list[Cell]:
    """Returns the grid's cells in table order: dense, then metrics alone, starting points and searches."""
    grid: list[Cell] = [Cell(kind="dense")]
    for granularity in config.granularity:
        sparsities: list[dict[str, Any]] = [{"sparsity": value} for value in config.sparsity]
        for asked in [*sparsities, *({"budget": text} for text in config.budget)]:
            shared: dict[str, Any] = {"granularity": granularity, **asked}
            grid += [
                Cell(kind="baseline", initializer=metric, scope=scope, scale=scale, seed=seed, **shared)
                for metric in config.baselines
                for scope in config.metric_scopes
                for scale in config.scale
                for seed in config.seeds
            ]
            grid += [
                Cell(
                    kind="search" if estimator else "start",
                    initializer=metric,
                    estimator=estimator,
                    scope=scope,
                    seed=seed,
                    **shared,
                )
                for metric in config.initializers
                for scope in config.search_scopes
                for estimator in (None, *config.estimators)
                for seed in config.seeds
                if config.estimators
            ]
    return grid
