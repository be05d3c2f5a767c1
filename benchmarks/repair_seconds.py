"""Times what a least-squares repair costs: seconds of forward passes, of inner products, and of solving, in one run.

    python benchmarks/repair_seconds.py --model smollm2-135m --model gemma3-270m --windows 32 \
        --output benchmarks/results/repair_seconds.json

One text of random tokens passes through each model twice, once as it is and once with the moments of every reader
collected. The difference is the inner products, which grow with the tokens as the forward pass does; solving does not.
The wide stack is that of mask_evaluation.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import torch
from mask_evaluation import clock, masks, wide_model
from rich.console import Console
from rich.table import Table

from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.losses import last_hidden
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores, Selection
from polyprune_core.utils.environment import environment
from polyprune_core.utils.rng import generator

SPARSITY, SEQ_LEN = 0.3, 128


def measure(name: str, loaded: LoadedModel, windows: int) -> dict[str, Any]:
    """Returns the seconds of the three parts for one model, and what they were of."""
    model, layout, registry = loaded.model, describe(loaded.model), load_registry()
    groups = [g for part in ("head", "channel") for g in registry.build("granularity", part).groups(layout)]
    space = MaskSpace(layout, groups, "head+channel")
    keep = masks(space, SPARSITY, 1)[0]
    pruned = PrunedModel(
        loaded, space, Selection(keep, space.total_cost, space.total_cost), Scores(keep.float(), "random")
    )
    ids = torch.randint(model.config.vocab_size, (windows, SEQ_LEN), generator=generator(0, "benchmark tokens"))
    calibration = Calibration(model, layout, ids, generator(0, "repair"))
    reader = next(axis.name for axis in layout.axes if axis.reader is not None)

    @torch.inference_mode()
    def forward() -> None:
        for batch in calibration.batches():
            last_hidden(model, batch)

    last_hidden(model, ids[:1])  # the first pass of a process is slower
    plain = clock(forward)
    with_moments = clock(lambda: calibration.moments(reader))
    solving = clock(lambda: registry.build("repair", "least-squares").repair(pruned, calibration))
    seconds = {"forward": plain, "products": with_moments - plain, "solving": solving}
    return {"model": name, "tokens": ids.numel(), "seconds": seconds}


@click.command()
@click.option("--model", "names", multiple=True, default=("smollm2-135m",), show_default=True)
@click.option("--windows", default=64, show_default=True, help=f"Windows of {SEQ_LEN} tokens.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(names: tuple[str, ...], windows: int, output: Path | None) -> None:
    """Time the parts of a least-squares repair."""
    records = [measure(Path(name).name, load_model(name, dtype="bfloat16"), windows) for name in names]
    wide = LoadedModel("wide", wide_model(torch.bfloat16), None, "", None)  # type: ignore[arg-type]
    records.append(measure("wide, hidden 2048, 4 layers", wide, windows))
    table = Table("model", "tokens", "forward s", "inner products s", "solving s")
    for each in records:
        table.add_row(each["model"], f"{each['tokens']}", *(f"{value:.1f}" for value in each["seconds"].values()))
    Console().print(table)
    if output:
        output.write_text(json.dumps({"environment": environment(), "results": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
