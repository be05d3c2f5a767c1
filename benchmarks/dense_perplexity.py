"""Perplexity of a dense model on a text at several window lengths.

python benchmarks/dense_perplexity.py wiki.test.raw --output benchmarks/results/dense_perplexity.json
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from polyprune_core.evaluation.perplexity import Evaluator
from polyprune_core.evaluation.text import load_text
from polyprune_core.evaluation.windows import Cutter
from polyprune_core.models.sources import load_model
from polyprune_core.utils.environment import environment

WINDOWS = {2048: 40, 128: 160}


@click.command()
@click.argument("text")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(text: str, model: str, output: Path | None) -> None:
    """Measure a dense model on evenly spaced windows of TEXT."""
    loaded = load_model(model)
    source, cutter = load_text(text, "evaluation"), Cutter.of(loaded.tokenizer, loaded.model)
    rows = []
    for seq_len, count in WINDOWS.items():
        windows = cutter.windows(source, seq_len, count)
        evaluation = Evaluator(windows).dense(loaded.model)
        rows.append({"seq_len": seq_len, "windows": len(windows), "perplexity": evaluation.perplexity})
        click.echo(f"{model}, {len(windows)} windows of {seq_len} tokens: perplexity {evaluation.perplexity:.3f}")
    if output:
        record = {
            "environment": environment(),
            "model": model,
            "sha256": loaded.sha256,
            "text": source.name,
            "rows": rows,
        }
        output.write_text(json.dumps(record | {"text_sha256": source.sha256}, indent=1) + "\n")


if __name__ == "__main__":
    main()
