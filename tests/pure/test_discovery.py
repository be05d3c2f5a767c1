"""Which installed plugins are loaded: by the version of the interface, and by what the user switched off."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from polyprune_core import API_VERSION, Provider, hookimpl
from polyprune_core.errors import PluginError
from polyprune_core.plugins import registry as registry_module
from polyprune_core.plugins.discovery import Source, installed, sourced
from polyprune_core.plugins.registry import Registry, load_registry


class Toy:
    def score(self, *_: Any) -> Any:
        raise NotImplementedError


def never() -> Any:
    raise AssertionError("the plugin was loaded")


def point(name: str, group: str = "polyprune", distribution: str = "toys", load: Any = None) -> Any:
    """An entry point whose module provides one initializer of the same name."""
    module = ModuleType(name)
    module.polyprune_initializers = hookimpl(lambda: [Provider(name, "a toy", Toy)])
    module.polyprune_initializers.__name__ = "polyprune_initializers"
    dist = SimpleNamespace(name=distribution, version="0.1")
    return SimpleNamespace(name=name, group=group, load=load or (lambda: module), dist=dist, value=name)


def names(registry: Registry) -> list[str]:
    return [item.provider.name for item in registry.all()]


def test_a_plugin_for_a_newer_interface_is_refused_unread_with_both_versions() -> None:
    registry = load_registry([point("future", "polyprune7", load=never), point("present")])
    assert names(registry) == ["present"]
    (problem,) = registry.problems
    for part in ("future (toys 0.1)", "version 7 of the plugin interface", f"has version {API_VERSION}"):
        assert part in str(problem)
    with pytest.raises(PluginError, match="version 7 of the plugin interface"):
        registry.get("initializer", "future")


@pytest.mark.parametrize("group", ["polyprune", "polyprune1"])
def test_a_plugin_that_names_no_version_or_ours_is_for_version_1(group) -> None:
    registry = load_registry([point("present", group)])
    assert registry.problems == ()
    assert registry.get("initializer", "present").source.api == 1


def test_a_distribution_may_serve_several_versions_with_one_name(monkeypatch) -> None:
    points = [point("both"), point("both", "polyprune2", load=never)]
    registry = load_registry(points)
    assert (names(registry), registry.problems) == (["both"], ())
    monkeypatch.setattr("polyprune_core.plugins.discovery.API_VERSION", 2)
    ((_, source),), problems = registry_module.usable(points)
    assert (source.api, problems) == (2, [])


def test_an_entry_point_without_a_group_is_for_version_1() -> None:
    ((_, source),) = sourced([EntryPoint("a", "b", "polyprune")])
    assert source.api == 1


@pytest.mark.parametrize(
    "group", ["polyprune.plugins", "polyprune_plugins", "polyprune-initializers", "polyprune.2", "Polyprune.exporter"]
)
def test_a_group_that_nobody_reads_is_told_and_its_plugins_are_not_loaded(group, monkeypatch) -> None:
    registry = load_registry([point("lost", group, load=never), point("present")])
    assert names(registry) == ["present"]
    (problem,) = registry.problems
    assert f"'{group}' is read by nobody; write [project.entry-points.polyprune]" in str(problem)


def test_groups_of_other_programs_are_left_alone(monkeypatch, tmp_path) -> None:
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    groups = "[polyprune_studio.views]\na = m\n[polyprune.plugins]\nb = m\n[polyprune]\nc = m\n"
    (info / "entry_points.txt").write_text(groups)
    monkeypatch.syspath_prepend(str(tmp_path))
    theirs = [found for found in installed() if found.dist.name == "others"]
    assert {found.name for found in theirs} == {"b", "c"}
    assert len(entry_points(group="polyprune")) >= 16


@pytest.fixture
def three(monkeypatch) -> None:
    """Installs our own plugin `ours` and the plugins `alpha` and `beta-two` of two strangers."""
    points = [point("ours", distribution="polyprune"), point("alpha"), point("beta-two", distribution="Other.Toys")]
    monkeypatch.setattr(registry_module, "installed", lambda: points)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("alpha", ["beta-two", "ours"]),
        ("other-toys", ["alpha", "ours"]),
        ("Other_Toys, ALPHA,,", ["ours"]),
        ("beta_two,ours", ["alpha"]),
        ("nothing-of-that-name", ["alpha", "beta-two", "ours"]),
        ("", ["alpha", "beta-two", "ours"]),
    ],
)
def test_plugins_are_switched_off_by_their_name_or_their_distribution(three, monkeypatch, words, left) -> None:
    monkeypatch.setenv("POLYPRUNE_DISABLE", words)
    registry = load_registry()
    assert names(registry) == left
    assert registry.problems == ()
    assert len(registry.off) == 3 - len(left)


def test_what_is_switched_off_is_not_even_read_and_says_so_when_it_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(registry_module, "installed", lambda: [point("alpha", load=never)])
    monkeypatch.setenv("POLYPRUNE_DISABLE", "alpha")
    with pytest.raises(PluginError, match=r"alpha \(toys 0\.1\): switched off by POLYPRUNE_DISABLE"):
        load_registry().get("initializer", "alpha")


def test_one_of_two_plugins_of_one_name_can_be_switched_off(monkeypatch) -> None:
    points = [point("alpha"), point("alpha", distribution="others")]
    monkeypatch.setattr(registry_module, "installed", lambda: points)
    assert "switch it off with POLYPRUNE_DISABLE=DISTRIBUTION" in str(load_registry().problems[0])
    monkeypatch.setenv("POLYPRUNE_DISABLE", "others")
    assert (names(load_registry()), load_registry().problems) == (["alpha"], ())


def test_only_our_own_plugins_are_loaded_where_no_others_are_wanted(three, monkeypatch) -> None:
    monkeypatch.setenv("POLYPRUNE_NO_EXTERNAL", "1")
    registry = load_registry()
    assert names(registry) == ["ours"]
    with pytest.raises(PluginError, match="only polyprune's own plugins are wanted"):
        registry.get("initializer", "alpha")


def test_what_is_switched_off_is_no_problem_in_strict_mode(three, monkeypatch) -> None:
    monkeypatch.setenv("POLYPRUNE_STRICT_PLUGINS", "yes")
    monkeypatch.setenv("POLYPRUNE_DISABLE", "alpha")
    assert names(load_registry()) == ["beta-two", "ours"]


def test_a_source_without_a_version_has_no_blank_at_its_end() -> None:
    assert str(Source("unknown distribution", "")) == "unknown distribution"


@pytest.mark.parametrize("value", [None, "not a plugin", lambda: None, SimpleNamespace()])
def test_an_entry_point_that_registers_nothing_is_a_problem(value) -> None:
    registry = load_registry([point("empty", load=lambda: value), point("present")])
    assert names(registry) == ["present"]
    assert "registers no plugin; it needs one of polyprune_granularities" in str(registry.problems[0])


def test_a_hook_without_its_mark_is_a_problem() -> None:
    module = ModuleType("unmarked")
    module.polyprune_initializers = lambda: [Provider("unmarked", "a toy", Toy)]
    registry = load_registry([point("unmarked", load=lambda: module)])
    assert "marked with @hookimpl" in str(registry.problems[0])
