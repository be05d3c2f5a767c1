"""Runs the plugins of the negative suite and tells what polyprune says of each: when loaded, checked and run.

Every plugin has one fault. Those that load are examined by the conformance kit, which has to catch each by the one
check that is meant for it; all but exporters are besides asked to work in a comparison on the bundled `tiny` model,
which refuses what would make other rows wrong and lets pass what only the kit can see.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

from broken import faults, loading  # noqa: E402

from polyprune_core import Provider  # noqa: E402
from polyprune_core.config.grid import cells  # noqa: E402
from polyprune_core.config.settings import Comparison  # noqa: E402
from polyprune_core.errors import PolypruneError, plain  # noqa: E402
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry  # noqa: E402
from polyprune_core.runs.decision import Decider  # noqa: E402
from polyprune_core.runs.harness import Harness  # noqa: E402
from polyprune_core.runs.opening import open_harness  # noqa: E402
from polyprune_core.runs.preflight import check_plugins, settled  # noqa: E402
from polyprune_core.testing import run_checks  # noqa: E402
from polyprune_core.utils.files import write_json  # noqa: E402
from polyprune_core.utils.progress import Reporter  # noqa: E402

SOURCE = Source("broken", "0")
SMALL = {"model": "tiny", "limit": 2, "seq_len": 32, "eval_seq_len": 32, "calibration_samples": 5, "steps": 2}


def when_loaded(name: str, source: str) -> dict[str, str]:
    """Returns the row of a module that does not load."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "broken_module.py").write_text(loading.HEADER + source)
        sys.path.insert(0, folder)
        dist: Any = SimpleNamespace(name=SOURCE.distribution, version=SOURCE.version)
        (problem,) = load_registry([EntryPoint(name, "broken_module", "polyprune")._for(dist)]).problems
        sys.path.remove(folder)
        sys.modules.pop("broken_module", None)
    return {
        "kind": "module",
        "plugin": name,
        "caught_by": "loading",
        "message": _told(problem.message, f"{folder}/"),
        "in_a_run": "",
    }


def when_checked(item: Registered, expected: str) -> dict[str, str]:
    """Returns the row of a plugin that fails the one check that is meant for its fault."""
    failed = [result for result in run_checks([item]) if result.status == "failed"]
    if [result.check for result in failed] != [expected]:
        raise SystemExit(f"{item.provider.name}: {expected} has to fail, and these do: {failed}")
    return {"plugin": item.provider.name, "caught_by": expected, "message": _told(failed[0].message)}


def when_run(item: Registered, ours: list[Registered], shared: Harness) -> str:
    """Returns what a comparison on `tiny` says of a plugin, or nothing where it takes it."""
    if item.kind == "exporter":
        return ""
    name = item.provider.name
    role = {
        "granularity": {"granularity": (name,)},
        "initializer": {"initializers": (name,)},
        "policy": {"policy": name},
        "estimator": {"estimators": (name,)},
        "repair": {"repair": (name,)},
    }
    asked: dict[str, Any] = {"estimators": ("rloo",), "baselines": ()} | role[item.kind]
    config = Comparison(**SMALL, **asked)
    registry = Registry([*ours, item], ())
    try:
        config = settled(config, registry)
        check_plugins(config, registry)
        harness = Harness(shared.loaded, shared.texts, config, registry, Reporter())
        with harness.compactor:
            Decider(harness).decide(cells(config)[-1])
    except PolypruneError as error:
        return _told(str(error))
    return ""


def _told(message: str, folder: str = "") -> str:
    """Returns a message as the command line shows it, without the folders of this machine."""
    for here in (f"{ROOT}/", folder):
        message = message.replace(here, "") if here else message
    return plain(message)


def main() -> None:
    """Runs them all, writes the JSON and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "negative_suite.json")
    output = parser.parse_args().output
    ours = load_registry().all()
    registry = Registry(ours, ())
    shared = open_harness(settled(Comparison(**SMALL), registry), registry, Reporter())
    rows = [when_loaded(name, source) for name, (source, _) in loading.FAULTS.items()]
    for kind, provider, check in faults():
        item = Registered(kind, _named(provider), SOURCE)
        row = {"kind": kind, **when_checked(Registered(kind, provider, SOURCE), check)}
        rows.append(row | {"in_a_run": when_run(item, ours, shared)})
    write_json(output, {"rows": rows})
    print("| kind | broken plugin | caught by | what it says | in a run |\n|---|---|---|---|---|")
    for row in rows:
        cells_ = (row["kind"], row["plugin"], f"`{row['caught_by']}`", row["message"], row["in_a_run"])
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells_) + " |")


def _named(provider: Provider[Any]) -> Provider[Any]:
    """Returns the provider with a name that can be asked for; one whose fault is its name does not get to a run."""
    name = provider.name.lower().replace("_", "-")
    return Provider(name, provider.summary, provider.factory, provider.needs)


if __name__ == "__main__":
    main()
