"""Every check can fail: each broken plugin is caught by the check that is meant for its fault; slow: by no other."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from broken import estimators, faults, loading, policies, providers, repairs

from polyprune_core import Provider
from polyprune_core.plugins.registry import Registered, Source, load_registry
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.testing import granularity, repair, run_checks
from polyprune_core.testing.checks import CHECKS
from polyprune_core.testing.kit import PluginChecks

# No plugin can break these: they hold core itself to its word, for the units or the values that a plugin chooses.
OF_CORE = {
    "keeping_all_units_changes_no_bit",
    "gating_equals_zeroing",
    "gating_equals_compaction",
    "repaired_models_agree_in_every_form",
}
FAULTS = [pytest.param(*fault, id=f"{fault[0]}-{fault[1].name}") for fault in faults()]


def failures(kind: str, provider: Provider[Any]) -> dict[str, str]:
    """Returns the message of every check that fails."""
    results = run_checks([Registered(kind, provider, Source("broken", "0"))])
    return {result.check: result.message for result in results if result.status == "failed"}


@pytest.mark.parametrize(("kind", "provider", "check"), FAULTS)
def test_a_fault_is_caught_by_the_check_that_is_meant_for_it(kind, provider, check) -> None:
    result = PluginChecks(Registered(kind, provider, Source("broken", "0"))).result(check)
    assert result.status == "failed", result
    assert len(result.message) > 10


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "provider", "check"), FAULTS)
def test_a_fault_is_caught_by_no_other_check(kind, provider, check) -> None:
    assert list(failures(kind, provider)) == [check]


@pytest.mark.parametrize(
    ("kind", "sound"),
    [
        ("granularity", providers.Channels),
        ("policy", policies.Sound),
        ("estimator", estimators.Sound),
        ("repair", repairs.Sound),
    ],
)
def test_what_the_broken_plugins_are_made_from_has_no_fault(kind, sound) -> None:
    assert failures(kind, Provider("sound", "has no fault", sound)) == {}


def test_every_check_has_a_plugin_that_it_catches() -> None:
    caught = {check for _, _, check in faults()}
    assert caught | OF_CORE == {check.name for check in CHECKS}
    assert not caught & OF_CORE


def _shifted(form: Any) -> Any:
    return lambda *arguments: form(*arguments) + 1e-3


class _Ignoring(Compactor):
    """Runs the whole model whatever is to be removed."""

    def applied(self, axis_keep: Any) -> Any:
        return super().applied({name: torch.ones_like(keep) for name, keep in axis_keep.items()})


@pytest.mark.parametrize(
    ("name", "fault", "expected"),
    [
        ("Compactor", _Ignoring, {"gating_equals_compaction"}),
        ("_zeroed", _shifted(granularity._zeroed), {"gating_equals_zeroing"}),
        ("_compact", _shifted(granularity._compact), {"keeping_all_units_changes_no_bit", "gating_equals_compaction"}),
    ],
    ids=["compaction removes nothing", "zeroing is off by a little", "compaction is off by a little"],
)
def test_a_fault_in_cores_own_forms_is_caught_too(monkeypatch, name, fault, expected) -> None:
    monkeypatch.setattr(granularity, name, fault)
    assert set(failures("granularity", Provider("sound", "has no fault", providers.Channels))) == expected


def test_a_form_of_a_repaired_model_that_lost_its_updates_is_caught_too(monkeypatch) -> None:
    def without(pruned: Any) -> dict[str, Any]:
        return {"read back from a folder": replace(pruned, updates={}).build()}

    monkeypatch.setattr(repair, "_read_back", without)
    found = failures("repair", Provider("sound", "has no fault", repairs.Sound))
    assert list(found) == ["repaired_models_agree_in_every_form"]


@pytest.mark.parametrize("fault", loading.FAULTS)
def test_a_module_that_cannot_be_loaded_is_told_and_a_sound_one_beside_it_works(fault, tmp_path, monkeypatch) -> None:
    source, told = loading.FAULTS[fault]
    (tmp_path / "broken_module.py").write_text(loading.HEADER + source)
    sound = loading.HEADER + loading.HOOK.format(body="yield Provider('sound', 'x', Sound)")
    (tmp_path / "sound_module.py").write_text(sound)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint(name, f"{name}_module", "polyprune") for name in ("broken", "sound")]
    dist = SimpleNamespace(name="broken", version="0", metadata={})
    registry = load_registry([point._for(dist) for point in points])
    for name in ("broken_module", "sound_module"):
        sys.modules.pop(name, None)
    assert [item.provider.name for item in registry.all()] == ["sound"]
    (problem,) = registry.problems
    assert told in str(problem)
    assert "(broken 0)" in str(problem)


def test_the_published_table_has_every_fault_with_the_check_that_caught_it() -> None:
    table = Path(__file__).parents[2] / "benchmarks" / "results" / "negative_suite.json"
    rows = json.loads(table.read_text("utf-8"))["rows"]
    assert [(row["plugin"], row["caught_by"]) for row in rows] == [
        *((name, "loading") for name in loading.FAULTS),
        *((provider.name, check) for _, provider, check in faults()),
    ]
    assert all(row["message"] for row in rows)
