"""The grid of a comparison: its cells in table order, and what decides the numbers of each."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from polyprune_core.config.cell import AnyCell, Cell, Dense, Metric, Search, Start
from polyprune_core.config.settings import Comparison, Settings

# Names of what the identity of a cell holds itself: settings of a preset, weights, texts, number format and device.
NAMES = ("preset", "model", "revision", "dtype", "device", "calibration", "evaluation", "text_column")
# What decides the numbers of some kinds of cells only. A setting that is not listed here decides them all.
PRUNED_ONLY = ("calibration_samples", "seq_len", "batch_size", "min_keep", "protect")
# Settings that came later: cells that leave them out have the ids that they had before.
LATER = {"protect": None, "objective": "cross-entropy", "early_stopping": None}
POLICY_ONLY = ("policy",)
SEARCH_ONLY = (
    "objective",
    "steps",
    "masks_per_step",
    "forward_tokens",
    "learning_rate",
    "optimizer",
    "precondition",
    "warmup",
    "averaging",
    "early_stopping",
)
REPAIRED_ONLY = ("repair_samples",)
IGNORED = {
    "dense": (*PRUNED_ONLY, *POLICY_ONLY, *SEARCH_ONLY),
    "trained": ("calibration_samples", "min_keep", *POLICY_ONLY, *SEARCH_ONLY),
    "baseline": (*POLICY_ONLY, *SEARCH_ONLY),
    "start": SEARCH_ONLY,
    "search": ("forward_tokens",),
}


def cell_id(cell: Cell, settings: Settings, identity: dict[str, Any]) -> str:
    """Returns 16 hex digits that change with what decides the cell's result, and with nothing else.

    `identity` holds hashes and versions, of the calibration text under "calibration". A coordinate at its default is
    left out, so that one that is added later leaves the ids of cells as they are.
    """
    decides = settings.model_dump(include=set(Settings.model_fields))
    if cell.kind == "search":
        decides["steps"] = settings.search_steps
    kind = "trained" if cell.kind == "dense" and cell.repaired else cell.kind
    ignored = (*NAMES, *IGNORED[kind], *(() if cell.repaired else REPAIRED_ONLY))
    decides = {name: value for name, value in decides.items() if name not in ignored}
    decides = {name: value for name, value in decides.items() if name not in LATER or value != LATER[name]}
    if kind == "dense":
        identity = {name: value for name, value in identity.items() if name != "calibration"}
    coordinates = {"kind": cell.kind, **cell.model_dump(exclude_defaults=True)}
    record = json.dumps([coordinates, decides, identity], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def cells(config: Comparison) -> list[AnyCell]:
    """Returns the grid's cells in table order: dense, then metrics alone, starting points and searches.

    A repair that trains is there for the dense model too: what training does by itself is not its doing for the pruned.
    """
    grid: list[AnyCell] = [Dense(), *itertools.starmap(_trained, itertools.product(config.trained, config.seeds))]
    for granularity, target, shapes in itertools.product(config.granularity, config.targets, config.shapes):
        shared: dict[str, Any] = {"granularity": granularity, "target": target, "shapes": shapes}
        metrics = itertools.product(config.baselines, config.metric_scopes, config.scale, config.repair, config.seeds)
        grid += [
            Metric(initializer=metric, scope=scope, scale=scale, repair=repair, seed=seed, **shared)
            for metric, scope, scale, repair, seed in metrics
        ]
        starts = itertools.product(config.initializers, config.search_scopes)
        for metric, scope in starts if config.estimators else ():
            for estimator, repair, seed in itertools.product((None, *config.estimators), config.repair, config.seeds):
                chosen = {"initializer": metric, "scope": scope, "repair": repair, "seed": seed, **shared}
                grid.append(Search(estimator=estimator, **chosen) if estimator else Start(**chosen))
    return grid


def _trained(repair: str, seed: int) -> Dense:
    return Dense(repair=repair, seed=seed)
