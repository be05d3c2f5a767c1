"""Writes the tables of README.md from the committed results, between their markers.

python benchmarks/tables.py            # rewrite
python benchmarks/tables.py --check    # exit status 1 where README.md is out of date
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from polyprune_core.report import markdown
from polyprune_core.results import Results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def estimators() -> str:
    """The comparison of metrics and estimators on SmolLM2-135M."""
    results = Results.from_json(json.loads((RESULTS / "estimators.json").read_text("utf-8")))
    wanted = ("perplexity", "against its start", "n", "forward tokens", "backward passes", "KL to dense")
    return markdown(results, ("sparsity asked → got", *wanted))


def mask_evaluation() -> str:
    """Compact, gated and dense evaluation of one mask."""
    record = json.loads((RESULTS / "mask_evaluation.json").read_text("utf-8"))
    lines = ["| model | sparsity | compact / dense | gated / dense |", "|---|---:|---:|---:|"]
    lines += [
        f"| {r['model']} | {r['sparsity']} | {_ratio(r['compact'])} | {_ratio(r['gated'])} |" for r in record["results"]
    ]
    batch, environment = record["batch"], record["environment"]
    where = f"{record['dtype']}, {environment['cpu']}, {environment['threads']} threads, torch {environment['torch']}"
    return "\n".join(
        [*lines, "", f"Median and quartiles of turn-by-turn ratios, {batch[0]} x {batch[1]} tokens, {where}."]
    )


def dense_perplexity() -> str:
    """The dense model on the evaluation text at two window lengths."""
    record = json.loads((RESULTS / "dense_perplexity.json").read_text("utf-8"))
    lines = [f"| {record['model']}, dense, on {record['text']} | perplexity |", "|---|---:|"]
    rows = record["rows"]
    return "\n".join([*lines, *(f"| {r['windows']} windows of {r['seq_len']} | {r['perplexity']:.2f} |" for r in rows)])


def _ratio(way: dict[str, Any]) -> str:
    low, high = way["quartiles"]
    return f"{way['of_dense']:.2f} ({low:.2f} to {high:.2f})"


TABLES = {"estimators": estimators, "dense-perplexity": dense_perplexity, "mask-evaluation": mask_evaluation}


def render(text: str) -> str:
    """Returns README text with every marked table made anew."""
    for name, make in TABLES.items():
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, make=make, begin=begin, end=end: f"{begin}\n{make()}\n{end}",
            text,
            flags=re.S,
        )
    return text


@click.command()
@click.option("--check", is_flag=True, help="Only say whether README.md is up to date.")
def main(check: bool) -> None:
    """Write README.md's tables from benchmarks/results."""
    readme = ROOT / "README.md"
    before = readme.read_text("utf-8")
    after = render(before)
    if check:
        sys.exit(before != after)
    readme.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
