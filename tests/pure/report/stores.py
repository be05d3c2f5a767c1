"""Made-up results stores: what `polyprune compare` leaves behind, without a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from polyprune_core.config.settings import Comparison
from polyprune_core.results.cell_file import Details, Group, path_of, write_details
from polyprune_core.results.results import Results
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store, write_json
from polyprune_core.search.trace import StepRecord, Trace
from tests.rows import row as made_row

WINDOWS = 40
GROUPS = (*(Group("head", layer, 4) for layer in range(3)), *(Group("channel", layer, 20) for layer in range(3)))
UNITS = sum(group.count for group in GROUPS)
DENSE = 3.0
# Loss above the dense model's at sparsity 0.2, in nats per token.
HARM = {
    ("baseline", "random", None): 1.0,
    ("baseline", "wanda", None): 0.30,
    ("start", "wanda", None): 0.32,
    ("search", "wanda", "rloo"): 0.20,
    ("search", "wanda", "reinforce"): 0.32,
}


def run(name: str = "tiny", **config: Any) -> dict[str, Any]:
    """What every cell of a comparison shares."""
    asked = {
        "model": name,
        "estimators": ["rloo", "reinforce"],
        "baselines": ["random", "wanda"],
        "sparsity": [0.2, 0.3],
    }
    text = {"sha256": "ab", "windows": WINDOWS, "tokens_per_window": 16}
    return {
        "polyprune": "0.1.0",
        "environment": {"python": "3.11", "cpu": "a processor", "gpu": None, "threads": 1},
        "config": Comparison(**{**asked, **config}).model_dump(mode="json"),
        "model": {
            "name": name,
            "sha256": f"hash of {name}",
            "dtype": "float32",
            "device": "cpu",
            "parameters": 1_000_000,
            "prunable_parameters": {"head+channel": 800_000},
        },
        "texts": {"calibration": text | {"name": "learn.txt"}, "evaluation": text | {"name": "test.txt"}},
    }


def cells(sparsities: tuple[float, ...] = (0.2, 0.3), seeds: tuple[int, ...] = (0, 1, 2)) -> list[tuple[Row, Details]]:
    """Rows and what lies beside them; the noise of a window is shared by all rows, as text is."""
    text = np.random.default_rng(0).normal(0, 0.5, WINDOWS)
    dense = DENSE + text - text.mean()
    found = [(row("dense", None, None, None, None, dense), Details(dense.astype(np.float32)))]
    for sparsity in sparsities:
        for (kind, metric, estimator), harm in HARM.items():
            for seed in seeds:
                rng = np.random.default_rng([seed, len(metric), round(100 * harm), round(100 * sparsity)])
                shared = np.random.default_rng(seed).normal(0, 0.01)
                window_nll = dense + harm * sparsity / 0.2 + shared + rng.normal(0, 0.01, WINDOWS)
                scores = rng.normal(size=UNITS).astype(np.float32)
                if metric == "wanda":
                    scores += 10 * np.random.default_rng(1).normal(size=UNITS).astype(np.float32)
                keep = scores >= np.quantile(scores, sparsity)
                details = Details(window_nll.astype(np.float32), run(), GROUPS, keep, scores)
                found.append((row(kind, metric, estimator, sparsity, seed, window_nll), details))
    return found


def row(kind: str, metric: Any, estimator: Any, sparsity: Any, seed: Any, window_nll: Any) -> Row:
    """The row of these windows."""
    nll = float(np.mean(window_nll))
    shared = {"nll": nll, "perplexity": math.exp(nll), "eval_tokens": 15 * WINDOWS, "peak_memory_mb": 100.0}
    if kind == "dense":
        return made_row(id="dense", kind="dense", parameters_kept=1_000_000, parameters_kept_fraction=1.0, **shared)
    kept = 1_000_000 - round(800_000 * sparsity)
    return made_row(
        id=f"{kind}-{metric}-{estimator}-{round(100 * sparsity)}-{seed}",
        kind=kind,
        granularity="head+channel",
        initializer=metric,
        estimator=estimator,
        sparsity=sparsity,
        seed=seed,
        scope="kind",
        scale="zscore" if kind == "baseline" else None,
        sparsity_achieved=sparsity,
        parameters_kept=kept,
        parameters_kept_fraction=kept / 1_000_000,
        kl_to_dense=0.1,
        top1_agreement=0.8,
        forward_passes=0 if metric == "random" else 8 + 20 * (kind == "search"),
        forward_tokens=0 if metric == "random" else 1000 + 20_000 * (kind == "search"),
        search_seconds=1.0,
        plugins={"initializer": "polyprune 0.1.0"},
        **shared,
    )


def trace(seed: int) -> Trace:
    """A search of 20 steps whose loss falls."""
    losses = 4 - np.arange(20) / 20 + np.random.default_rng(seed).normal(0, 0.05, 20)
    return Trace(
        [StepRecord(i + 1, (float(x), float(x)), 1.0, 0.2, 0.5, 0, 1000 * (i + 1), 0.1) for i, x in enumerate(losses)]
    )


def fill(
    folder: Path,
    made: list[tuple[Row, Details]] | None = None,
    record: dict[str, Any] | None = None,
    *,
    details: bool = True,
    finished: bool = True,
) -> Path:
    """Writes a store; `details` False is one of before details were kept, `finished` False a broken-off run."""
    made, record = made or cells(), record or run()
    store = Store(folder)
    store.make()
    for each, found in made:
        if details:
            beside = Details(found.window_nll, record, found.groups, found.keep, found.scores)
            write_details(path_of(store.cells, each.id), beside)
        store.write(each, trace(each.cell.seed or 0) if each.cell.kind == "search" else None)
    if finished:
        write_json(folder / "results.json", Results(**record, rows=[each for each, _ in made]).to_json())
    return folder


def edited(file: Path, **changes: Any) -> None:
    """Changes top-level values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")
