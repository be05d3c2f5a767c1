"""The suites of the benchmarks can be run as they are written."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from polyprune_core.config.parsing import parse
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.registry import load_registry
from polyprune_core.runs.preflight import check_plugins

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize("suite", ["sample_efficiency", "ablations", "other_text"])
def test_every_comparison_of_a_suite_can_be_asked_for(suite, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    runs = runpy.run_path(str(BENCHMARKS / "sample_efficiency.py"))["runs"](BENCHMARKS / "suites" / f"{suite}.toml")
    assert len(runs) > 1
    registry = load_registry()
    for settings in runs.values():
        request = parse(Comparison, settings)
        assert request.scope or not request.estimators, "a search says its scope, whatever the default"
        check_plugins(request, registry)
