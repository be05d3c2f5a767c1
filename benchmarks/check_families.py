"""Runs the kit's checks of families on a tiny model of every model type, and keeps what passed for the docs.

    python benchmarks/check_families.py --output benchmarks/results/families.json
    python benchmarks/tables.py

A test holds the file to the families, the kinds of units and the checks that there are now.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import click
import reference
import torch
import transformers

from polyprune_core.models.families import Family, family_files
from polyprune_core.testing.family import kinds_of, run_family_checks
from polyprune_core.utils.files import write_json

OWN = family_files()[0]


def said(family: Family) -> str:
    """Returns what tells what a family says from what it said when it was checked."""
    return hashlib.sha256(repr(dataclasses.asdict(family)).encode()).hexdigest()[:16]


def types() -> dict[str, dict[str, Any]]:
    """Returns, by model type, its family, what that says, and the kinds of axes in a tiny model."""
    return {
        model_type: {
            "family": family.name,
            "said": said(family),
            "kinds": kinds_of(reference.layout_of(model_type)),
        }
        for family in OWN.families
        for model_type in family.model_types
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file.")
def main(output: Path) -> None:
    """Check every family and write what passed; exit status 1 where something did not."""
    torch.set_num_threads(1)
    found = types()
    results = run_family_checks(OWN)
    for result in results:
        found[result.plugin].setdefault("checks", {})[result.check] = result.status
        if result.status != "passed":
            click.echo(f"{result.plugin}: {result.check}: {result.status}. {result.message}", err=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_json(output, {"versions": versions, "types": found})
    raise SystemExit(any(result.status != "passed" for result in results))


if __name__ == "__main__":
    main()
