"""Every check can fail: each broken plugin is caught by the one check that is meant for its fault, and by no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from broken import estimators, exporters, granularities, initializers, providers

from polyprune_core import Provider
from polyprune_core.plugins.registry import Registered, Source
from polyprune_core.surgery import Compactor
from polyprune_core.testing import granularity, run_checks
from polyprune_core.testing.checks import CHECKS

MODULES = {
    "granularity": granularities,
    "initializer": initializers,
    "estimator": estimators,
    "exporter": exporters,
}
NEEDS = {initializers.MeanOfBatchMeans: "calibration", initializers.NoFinally: "calibration"}
# No granularity can break these: they hold core itself to its word, for the units that a plugin chooses.
OF_CORE = {"keeping_all_units_changes_no_bit", "gating_equals_zeroing", "gating_equals_compaction"}


def _dashed(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _faults() -> Iterator[Any]:
    for provider, check in providers.FAULTS.items():
        yield pytest.param("granularity", provider, check, id=provider.name)
    for kind, module in MODULES.items():
        for broken, check in module.FAULTS.items():
            needs = frozenset({NEEDS[broken]} if broken in NEEDS else ())
            provider = Provider(_dashed(broken.__name__), "has one fault", broken, needs)
            yield pytest.param(kind, provider, check, id=f"{kind}-{provider.name}")


def failures(kind: str, provider: Provider[Any]) -> dict[str, str]:
    """Returns the message of every check that fails."""
    results = run_checks([Registered(kind, provider, Source("broken", "0"))])
    return {result.check: result.message for result in results if result.status == "failed"}


@pytest.mark.parametrize(("kind", "provider", "check"), list(_faults()))
def test_a_fault_is_caught_by_the_check_that_is_meant_for_it_and_no_other(kind, provider, check) -> None:
    found = failures(kind, provider)
    assert list(found) == [check], found
    assert len(found[check]) > 10


@pytest.mark.parametrize(("kind", "sound"), [("granularity", providers.Channels), ("estimator", estimators.Sound)])
def test_what_the_broken_plugins_are_made_from_has_no_fault(kind, sound) -> None:
    assert failures(kind, Provider("sound", "has no fault", sound)) == {}


def test_every_check_has_a_plugin_that_it_catches() -> None:
    caught = {check for module in (providers, *MODULES.values()) for check in module.FAULTS.values()}
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
