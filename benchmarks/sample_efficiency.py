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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from polyprune_core.atomic import write_atomically
from polyprune_core.cli.console import TerminalReporter, stderr
from polyprune_core.config import Comparison, parse
from polyprune_core.pipeline import compare
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results import Results, Row
from polyprune_core.statistics import Sample, sample
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


@dataclass(frozen=True)
class Criterion:
    """One way to prune at one sparsity and cost: nats per token by seed; forward and backward passes of one seed."""

    name: str
    searched: bool
    forward_tokens: int
    backward_passes: int
    nll: dict[int, float]

    @property
    def spread(self) -> Sample:
        """Nats per token over seeds."""
        return sample(list(self.nll.values()))


def criteria(record: dict[str, Any], sparsity: float) -> list[Criterion]:
    """Returns the metrics and searches of a record at one sparsity; a metric's seeds are taken from all comparisons."""
    rows = {row["id"]: row for row in record["rows"]}
    found: dict[tuple[Any, ...], Criterion] = {}
    for comparison in record["comparisons"].values():
        for row in (rows[key] for key in comparison["rows"]):
            if row["sparsity"] == sparsity and row["kind"] in ("baseline", "search") and row["nll"] is not None:
                name = _name(row, comparison["config"])
                cost = row["forward_tokens"], row["backward_passes"]
                key = (name, row["forward_tokens"])
                found.setdefault(key, Criterion(name, row["kind"] == "search", *cost, {})).nll[row["seed"]] = row["nll"]
    return list(found.values())


def _name(row: dict[str, Any], config: dict[str, Any]) -> str:
    if row["kind"] == "search":
        preset = "" if config["preset"] == "default" else f", {config['preset']}"
        return f"{config['policy']}, {row['estimator']}{preset}"
    pooled = "per layer" if row["scope"] == "layer" else f"{row['scope']}, {row['scale']}"
    return f"{row['initializer']} ({pooled})"


def best_metric(found: list[Criterion]) -> Criterion:
    """Returns the metric with the lowest mean loss."""
    return min((each for each in found if not each.searched), key=lambda each: each.spread.mean)


def draw(record: dict[str, Any], path: Path) -> None:
    """Writes the picture: perplexity against forward tokens, one panel a sparsity, the best metrics as levels."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "polyprune"
    dense = next(row["perplexity"] for row in record["rows"] if row["kind"] == "dense")
    sparsities = sorted({row["sparsity"] for row in record["rows"] if row["kind"] == "search"})
    figure, panels = pyplot.subplots(1, len(sparsities), figsize=(4.2 * len(sparsities), 4.6), squeeze=False)
    names = list(dict.fromkeys(each.name for s in sparsities for each in criteria(record, s) if each.searched))
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        found = criteria(record, sparsity)
        for index, name in enumerate(names):
            line = sorted((c for c in found if c.name == name), key=lambda c: c.forward_tokens)
            if line:
                _line(panel, line, index)
        for metric in sorted((c for c in found if not c.searched), key=lambda c: c.spread.mean)[:2]:
            level = math.exp(metric.spread.mean)
            panel.axhline(level, color="0.5", lw=0.8, ls="--")
            panel.annotate(metric.name, (0.01, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
        panel.axhline(dense, color="black", lw=0.8)
        panel.annotate("dense", (0.01, dense), xycoords=("axes fraction", "data"), va="bottom", fontsize=7)
        panel.set(xscale="log", yscale="log", title=f"sparsity {sparsity:g}", xlabel="forward tokens")
    panels[0][0].set_ylabel("perplexity on the test split")
    legend = _legend(panels[0])
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4, fontsize=7)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def _line(panel: Any, line: list[Criterion], index: int) -> None:
    """Means with 95 % t intervals of log-perplexity over seeds."""
    spreads = [each.spread for each in line]
    values = [math.exp(spread.mean) for spread in spreads]
    ends = [spread.ci95 or (spread.mean, spread.mean) for spread in spreads]
    below = [value - math.exp(low) for value, (low, _) in zip(values, ends, strict=True)]
    above = [math.exp(high) - value for value, (_, high) in zip(values, ends, strict=True)]
    style = {"color": f"C{index % 10}", "marker": "os^Dvx"[index % 6], "label": line[0].name}
    panel.errorbar([each.forward_tokens for each in line], values, [below, above], ms=4, capsize=2, lw=1.2, **style)


def _legend(panels: Any) -> dict[str, Any]:
    return {label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)}


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
