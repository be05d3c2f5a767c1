"""How good is a pruned model after how many forward tokens, for every estimator, policy and metric?

    cd FOLDER-WITH-WIKITEXT
    python benchmarks/sample_efficiency.py --store sample-efficiency --output benchmarks/results/sample_efficiency.json
    python benchmarks/sample_efficiency.py --output benchmarks/results/sample_efficiency.json --picture FILE.svg

The suite is a list of comparisons under shared settings; each goes through `polyprune compare` on one store, so that
cells are run once, an interrupted suite goes on, and several processes share the work (`--run` takes part of it). The
output holds every cell that is finished.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from curves import draw

from polyprune_core.cli.console import TerminalReporter, stderr
from polyprune_core.config.parsing import parse
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import load_registry
from polyprune_core.results.cell_file import path_of, read_details
from polyprune_core.results.row import Row
from polyprune_core.results.store import Store
from polyprune_core.runs.compare import compare
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.numbers import finite

SUITE = Path(__file__).parent / "suites" / "sample_efficiency.toml"
# What stands once above all comparisons of the output.
SHARED = ("polyprune", "environment", "model", "texts")
# What lies beside each row, by its id.
BESIDE = ("poolings", "windows")
# Decimals of the loss of one window.
DIGITS = 4


def runs(suite: Path) -> dict[str, dict[str, Any]]:
    """Returns the settings of each comparison by its name."""
    asked = tomllib.loads(suite.read_text("utf-8"))
    together = {name: asked["shared"] | own for name, own in asked["runs"].items()}
    return {name: {key.replace("-", "_"): value for key, value in own.items()} for name, own in together.items()}


def run(settings: dict[str, Any], store: Store, on_row: Callable[[dict[str, Any]], None]) -> None:
    """Runs a comparison as far as the store does not hold it; `on_row` gets its record after every cell."""
    request = parse(Comparison, settings)
    reporter = TerminalReporter(stderr())
    rows: list[dict[str, Any]] = []
    windows: dict[str, list[list[float]]] = {}
    poolings: dict[str, dict[str, float]] = {}

    def told(row: Row) -> None:
        perplexity = "failed" if row.perplexity is None else f"{row.perplexity:.2f}"
        reporter.status(
            f"{row.cell.initializer} {row.cell.estimator or ''} {row.cell.sparsity}, seed {row.cell.seed}: {perplexity}"
        )
        rows.append(finite(row.to_json()))
        details = read_details(path_of(store.cells, row.id))
        shared = {name: details.run[name] for name in SHARED} if details else {}
        if details:
            windows[row.id] = [losses.round(DIGITS).tolist() for losses in (details.window_nll, *details.further_nll)]
            poolings.update({row.id: details.poolings} if details.poolings else {})
        config = request.model_dump(mode="json")
        on_row({"shared": shared, "config": config, "rows": rows, "windows": windows, "poolings": poolings})

    compare(request, load_registry(), store, reporter, told)


def collected(folder: Path, suite: Path) -> dict[str, Any]:
    """Returns the record of a suite as far as it was run; a cell that several comparisons hold stands once.

    `windows` are, by row, the losses in nats per token of every window of each of its evaluations; `poolings` those of
    the poolings that a metric was tried in, on windows held back from it.
    """
    files = {name: folder / f"{name}.json" for name in runs(suite)}
    found = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    rows = {row["id"]: row for record in found.values() for row in record["rows"]}
    comparisons = {
        name: {
            "environment": record["shared"].get("environment"),
            "config": record["config"],
            "rows": [row["id"] for row in record["rows"]],
        }
        for name, record in found.items()
    }
    shared = next(record["shared"] for record in found.values() if record["shared"])
    beside = {
        what: {name: losses for record in found.values() for name, losses in record.get(what, {}).items()}
        for what in BESIDE
    }
    return shared | {"comparisons": comparisons, "rows": list(rows.values())} | beside


def written(record: dict[str, Any]) -> str:
    """Returns the record as JSON, what lies beside a row in one line."""
    text = json.dumps({key: value for key, value in record.items() if key not in BESIDE}, indent=1)[:-2]
    for what in BESIDE:
        lines = ",\n".join(f'  "{name}": {json.dumps(losses)}' for name, losses in record[what].items())
        text += f',\n "{what}": {{\n{lines}\n }}'
    return f"{text}\n}}\n"


@click.command()
@click.option("--suite", type=click.Path(path_type=Path, exists=True), default=SUITE, show_default=True)
@click.option("--store", type=click.Path(path_type=Path), help="Where cells are kept; without it nothing is run.")
@click.option("--run", "wanted", multiple=True, help="A comparison of the suite; all of them unless given.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write, or to draw.")
@click.option("--picture", type=click.Path(path_type=Path), help="Picture to draw from the output.")
def main(suite: Path, store: Path | None, wanted: tuple[str, ...], output: Path, picture: Path | None) -> None:
    """Run the suite, and draw it."""
    asked = runs(suite)
    for name in (wanted or asked) if store else ():
        file = store / f"{name}.json"

        def keep(record: dict[str, Any], file: Path = file) -> None:
            write_atomically(file, json.dumps(record) + "\n")
            write_atomically(output, written(collected(store, suite)))

        run(asked[name], Store(store), keep)
    if picture:
        draw(json.loads(output.read_text("utf-8")), picture)


if __name__ == "__main__":
    main()
