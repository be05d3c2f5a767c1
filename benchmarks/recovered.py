"""A pruned model trained further, and the dense model alike beside it, on the text of that training and on another.

python benchmarks/recovered.py wiki.valid.raw wiki.test.raw tinystories.txt --output benchmarks/results/recovered.json

SmolLM2-135M loses 30 % of what can be pruned by thinet, as benchmarks/exports.py decides. Both models are then trained
on the same windows of wiki.valid.raw with the same seed, and all four evaluated on wiki.test.raw and on TinyStories.
What training gains of the second text is recovery; of the first it may be that both know such text better now.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

import polyprune_core
from polyprune_core.utils.files import write_json

DECISION = {"initializer": "thinet", "sparsity": 0.3, "scope": "global", "scale": "zscore", "calibration_samples": 16}
TEXT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("calibration", type=TEXT)
@click.argument("evaluation", type=TEXT, nargs=-1, required=True)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True, help="That the models are evaluated in.")
@click.option("--repair", default="recover", show_default=True, help="What trains.")
@click.option("--tokens", default=8192, show_default=True, help="Tokens to train on, each once.")
@click.option("--limit", default=20, show_default=True, help="Windows of 128 tokens to evaluate on, of each text.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
def main(
    calibration: Path,
    evaluation: tuple[Path, ...],
    model: str,
    dtype: str,
    repair: str,
    tokens: int,
    limit: int,
    output: Path,
) -> None:
    """Prune, train the pruned and the dense model on CALIBRATION, and evaluate all four on each EVALUATION."""
    shared: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "calibration": str(calibration),
        "evaluation": [str(each) for each in evaluation],
        "limit": limit,
    }
    with TemporaryDirectory() as folder:
        pruned = polyprune_core.prune(**shared, **DECISION)
        masks = pruned.export("masks", f"{folder}/masks").path
        click.echo(repr(pruned))
        found = polyprune_core.recover(masks, **shared, repair=repair, tokens=tokens)
    click.echo(repr(found))
    record = found.to_json()
    write_json(output, record | {"model": model, "dtype": dtype, "decision": DECISION, "limit": limit})


if __name__ == "__main__":
    main()
