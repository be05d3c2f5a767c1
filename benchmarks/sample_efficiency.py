"""How good is a pruned model after how many forward tokens, for every estimator, policy and metric?

    cd FOLDER-WITH-WIKITEXT
    python benchmarks/sample_efficiency.py --store sample-efficiency --output benchmarks/results/sample_efficiency.json
    python benchmarks/sample_efficiency.py --output benchmarks/results/sample_efficiency.json --picture FILE.svg

The suite is a list of comparisons under shared settings; each goes through `polyprune compare` on one store, so that
cells are run once, an interrupted suite goes on, and several processes share the work (`--run` takes part of it). The
output holds every comparison that is finished.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from polyprune_core.atomic import write_atomically
from polyprune_core.cli.console import TerminalReporter, stderr
from polyprune_core.config import Comparison, parse
from polyprune_core.pipeline import compare
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results import Results, Row
from polyprune_core.statistics import sample
from polyprune_core.store import Store

SUITE = Path(__file__).parent / "suites" / "sample_efficiency.toml"
# What stands once above all comparisons of the output.
SHARED = ("polyprune", "environment", "model", "texts")


def runs(suite: Path) -> dict[str, dict[str, Any]]:
    """Returns the settings of each comparison by its name."""
    asked = tomllib.loads(suite.read_text("utf-8"))
    return {name: asked["shared"] | own for name, own in asked["runs"].items()}


def run(settings: dict[str, Any], store: Path) -> Results:
    """Returns the comparison, run as far as the store does not hold it."""
    request = parse(Comparison, {key.replace("-", "_"): value for key, value in settings.items()})
    reporter = TerminalReporter(stderr())

    def told(row: Row) -> None:
        perplexity = "failed" if row.perplexity is None else f"{row.perplexity:.2f}"
        reporter.status(f"{row.initializer} {row.estimator or ''} {row.sparsity}, seed {row.seed}: {perplexity}")

    return compare(request, load_registry(), Store(store), reporter, told)


def collected(store: Path, suite: Path) -> dict[str, Any]:
    """Returns the record of all finished comparisons of a suite; a cell that several of them hold stands once."""
    found = {
        name: json.loads(file.read_text("utf-8")) for name in runs(suite) if (file := store / f"{name}.json").exists()
    }
    rows = {row["id"]: row for record in found.values() for row in record["rows"]}
    comparisons = {
        name: {"config": record["config"], "rows": [row["id"] for row in record["rows"]]}
        for name, record in found.items()
    }
    first = next(iter(found.values()))
    return {name: first[name] for name in SHARED} | {"comparisons": comparisons, "rows": list(rows.values())}


def curves(record: dict[str, Any], sparsity: float) -> Iterator[tuple[str, list[tuple[int, list[float]]]]]:
    """Yields each criterion with its points: forward tokens, and nats per token of each seed."""
    rows = {row["id"]: row for row in record["rows"]}
    points: dict[str, dict[int, list[float]]] = {}
    for comparison in record["comparisons"].values():
        config = comparison["config"]
        for row in (rows[key] for key in comparison["rows"]):
            if row["sparsity"] != sparsity or row["status"] != "ok" or row["nll"] is None:
                continue
            name = f"{row['initializer']} {row['scope']} {row['scale']}"
            if row["kind"] == "search":
                name = f"{config['policy']}: {row['estimator']}"
            if row["kind"] in ("baseline", "search"):
                points.setdefault(name, {}).setdefault(row["forward_tokens"], []).append(row["nll"])
    for name, at in points.items():
        yield name, sorted(at.items())


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the picture: perplexity against forward tokens, one panel a sparsity."""
    from matplotlib import pyplot

    sparsities = sorted({row["sparsity"] for row in record["rows"] if row["kind"] == "search"})
    figure, panels = pyplot.subplots(1, len(sparsities), figsize=(5 * len(sparsities), 4.6), squeeze=False)
    dense = next(row["perplexity"] for row in record["rows"] if row["kind"] == "dense")
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        metrics = {}
        for name, points in curves(record, sparsity):
            means = [(tokens, sample(losses)) for tokens, losses in points]
            if ":" in name:
                ends = [s.ci95 or (s.mean, s.mean) for _, s in means]
                values = [math.exp(s.mean) for _, s in means]
                errors = [
                    [v - math.exp(low) for v, (low, _) in zip(values, ends, strict=True)],
                    [math.exp(high) - v for v, (_, high) in zip(values, ends, strict=True)],
                ]
                panel.errorbar([t for t, _ in means], values, errors, label=name, marker="o", ms=4, capsize=2, lw=1.2)
            else:
                metrics[name] = math.exp(means[-1][1].mean)
        for name, value in sorted(metrics.items(), key=lambda item: item[1])[:3]:
            panel.axhline(value, color="0.5", lw=0.8, ls="--")
            panel.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
        panel.axhline(dense, color="black", lw=0.8)
        panel.set(xscale="log", yscale="log", title=f"sparsity {sparsity:g}", xlabel="forward tokens")
    panels[0][0].set_ylabel("perplexity on the test split")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--suite", type=click.Path(path_type=Path, exists=True), default=SUITE, show_default=True)
@click.option("--store", type=click.Path(path_type=Path), help="Where cells are kept; without it nothing is run.")
@click.option("--run", "wanted", multiple=True, help="A comparison of the suite; all of them unless given.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write, or to draw.")
@click.option("--picture", type=click.Path(path_type=Path), help="Picture to draw from the output.")
def main(suite: Path, store: Path | None, wanted: tuple[str, ...], output: Path, picture: Path | None) -> None:
    """Run the suite, and draw it."""
    if store:
        asked = runs(suite)
        for name in wanted or asked:
            found = run(asked[name], store)
            write_atomically(store / f"{name}.json", json.dumps(found.to_json(), indent=1) + "\n")
            write_atomically(output, json.dumps(collected(store, suite), indent=1) + "\n")
    if picture:
        draw(json.loads(output.read_text("utf-8")), picture)


if __name__ == "__main__":
    main()
