"""Every plugin that comes with polyprune passes the kit that other authors' plugins are held to."""

from __future__ import annotations

from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.testing import conformance_tests


def _first_party() -> Registry:
    registry = load_registry()
    return Registry([item for item in registry.all() if item.source.distribution == "polyprune"], registry.problems)


test_conformance = conformance_tests(_first_party())


def test_every_first_party_plugin_is_checked_in_full() -> None:
    cases = {parameter.id for mark in test_conformance.pytestmark for parameter in mark.args[1]}
    names = {item.provider.name for item in _first_party().all()}
    assert {case.split("/")[0] for case in cases} == names
    assert {"wanda", "rloo", "head", "channel", "masks", "huggingface"} <= names
    assert all(sum(case.startswith(f"{name}/") for case in cases) >= 15 for name in names)
