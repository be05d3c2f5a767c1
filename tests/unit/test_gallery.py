"""The gallery says of every plugin what its own distribution says, and a search finds it by any of its words."""

from __future__ import annotations

from click.testing import CliRunner

import polyprune_evolution
import polyprune_example
from polyprune_core.cli import cli
from polyprune_core.plugins.gallery import gallery
from polyprune_core.plugins.registry import KINDS
from polyprune_core.testing.kit import registry_of


def test_our_own_distributions_are_there_as_they_register_themselves() -> None:
    listed = {plugin.distribution: plugin for plugin in gallery()}
    for distribution, module in (
        ("polyprune-example", polyprune_example),
        ("polyprune-evolution", polyprune_evolution),
    ):
        (item,) = registry_of(module).all()
        plugin = listed[distribution]
        assert (plugin.name, plugin.kind) == (item.provider.name, item.kind)
        assert distribution in plugin.install
        assert plugin.name in plugin.command


def test_every_entry_says_everything() -> None:
    names = [(plugin.kind, plugin.name) for plugin in gallery()]
    assert len(set(names)) == len(names)
    for plugin in gallery():
        assert plugin.kind in KINDS
        assert all(vars(plugin).values()), plugin.name


def test_a_search_finds_by_every_word_and_says_how_to_install() -> None:
    found = CliRunner().invoke(cli, ["plugins", "search", "cma", "initializer"])
    assert found.exit_code == 0
    assert "evolution" in found.stdout
    assert "pip install ./plugins/polyprune-evolution" in found.stdout
    assert "ria" not in found.stdout
    nothing = CliRunner().invoke(cli, ["plugins", "search", "no-such-word"])
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no plugin of another package is known for no-such-word" in nothing.stderr
