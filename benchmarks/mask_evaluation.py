"""Times one mask evaluation three ways, side by side: the smaller model, the gated model, the dense model.

    python benchmarks/mask_evaluation.py --output benchmarks/results/mask_evaluation.json

The three take turns on the same batch, so that a drift of the machine touches all of them; ratios are medians of
turn-by-turn ratios. Masks keep the same number of units of every kind, drawn anew for every turn, as in a search.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from polyprune_core.evaluation.losses import Objective, token_losses
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.utils.environment import environment
from polyprune_core.utils.rng import generator

WIDE = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 4096,
}


def wide_model(dtype: torch.dtype) -> torch.nn.Module:
    """A random stack of four wide LLaMA layers with a small vocabulary: its time is the layers' time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**WIDE)).to(dtype).eval().requires_grad_(False)


def masks(space: MaskSpace, sparsity: float, count: int) -> torch.Tensor:
    """Returns (count, U) random masks that remove the same share of every kind."""
    rng = generator(0, "benchmark masks")
    rows = torch.ones(count, len(space), dtype=torch.bool)
    for row in rows:
        for kind in range(len(space.kinds)):
            units = (space.kind == kind).nonzero().flatten()
            row[units[torch.randperm(len(units), generator=rng)[: round(sparsity * len(units))]]] = False
    return rows


def clock(work: Callable[[], Any]) -> float:
    """Returns the seconds that `work` took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(
    name: str, model: Any, sparsities: list[float], turns: int, batch: int, seq_len: int
) -> list[dict[str, Any]]:
    """Returns one record a sparsity: median seconds of each way and median ratios to dense."""
    layout = describe(model)
    registry = load_registry()
    groups = [g for part in ("head", "channel") for g in registry.build("granularity", part).groups(layout)]
    space = MaskSpace(layout, groups, "head+channel")
    ids = torch.randint(model.config.vocab_size, (batch, seq_len), generator=generator(0, "benchmark tokens"))
    records = []
    untouched = copy.deepcopy(model)
    with Compactor(model, layout) as compactor:
        objective = Objective(compactor, space)
        for sparsity in sparsities:
            seconds: dict[str, list[float]] = {"compact": [], "gated": [], "dense": []}
            for turn, mask in enumerate(masks(space, sparsity, turns + 2)):
                with gated(untouched, layout, space.axis_keep(mask)):
                    gated_seconds = clock(lambda: token_losses(untouched, ids))
                compact_seconds = clock(lambda mask=mask: objective.losses(mask[None], ids))
                dense_seconds = clock(lambda: token_losses(untouched, ids))
                if turn >= 2:
                    seconds["compact"].append(compact_seconds)
                    seconds["gated"].append(gated_seconds)
                    seconds["dense"].append(dense_seconds)
            records.append({"model": name, "sparsity": sparsity, "turns": turns, **summarise(seconds)})
    return records


def summarise(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns medians of seconds and of the ratios to dense, with the quartiles of the latter."""
    record: dict[str, Any] = {}
    for way, values in seconds.items():
        ratios = [value / dense for value, dense in zip(values, seconds["dense"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        record[way] = {"median_seconds": statistics.median(values), "of_dense": middle, "quartiles": [low, high]}
    return record


@click.command()
@click.option("--turns", default=15, show_default=True, help="Turns at each sparsity.")
@click.option("--batch-size", default=8, show_default=True)
@click.option("--seq-len", default=128, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(turns: int, batch_size: int, seq_len: int, output: Path | None) -> None:
    """Time one mask evaluation compact, gated and dense."""
    sparsities = [0.3, 0.5, 0.7]
    loaded = load_model("smollm2-135m")
    records = measure("smollm2-135m", loaded.model, sparsities, turns, batch_size, seq_len)
    records += measure("wide, hidden 2048", wide_model(loaded.model.dtype), sparsities, turns, batch_size, seq_len)
    table = Table("model", "sparsity", "compact s", "gated s", "dense s", "compact / dense", "gated / dense")
    for r in records:
        times = [f"{r[way]['median_seconds']:.3f}" for way in ("compact", "gated", "dense")]
        ratios = [f"{r[way]['of_dense']:.2f}" for way in ("compact", "gated")]
        table.add_row(r["model"], f"{r['sparsity']}", *times, *ratios)
    Console().print(table)
    if output:
        dtype = str(loaded.model.dtype).removeprefix("torch.")
        record = {"environment": environment(), "dtype": dtype, "batch": [batch_size, seq_len], "results": records}
        output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
