"""The plugin interface: every name a plugin may import, its signature, and examples that run.

A change of the interface is a change of `interface.txt`: run this file and say in the CHANGELOG what plugin authors
have to know.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyprune_core
from polyprune_core.plugins import contracts, hookspecs
from polyprune_core.plugins.registry import KINDS

PINNED = Path(__file__).with_name("interface.txt")
CONTRACTS = {
    "granularity": contracts.Granularity,
    "initializer": contracts.Initializer,
    "estimator": contracts.GradientEstimator,
    "policy": contracts.SearchPolicy,
    "repair": contracts.Repair,
    "exporter": contracts.Exporter,
}


def hooks() -> dict[str, Any]:
    return {name: value for name, value in vars(hookspecs).items() if name.startswith("polyprune_")}


def test_the_specified_hooks_are_the_four_that_are_loaded() -> None:
    assert sorted(hooks()) == sorted(KINDS.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_hook_runs_as_it_stands(kind) -> None:
    hook = KINDS[kind]
    (example,) = doctest.DocTestFinder(recurse=False).find(hooks()[hook], hook, globs={})
    assert len(example.examples) > 5
    shown: list[str] = []
    assert doctest.DocTestRunner().run(example, out=shown.append).failed == 0, "".join(shown)
    assert f"def {hook}():" in example.docstring


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_tells_the_signature_of_every_method_of_its_contract(kind) -> None:
    text = (inspect.getdoc(hooks()[KINDS[kind]]) or "").replace('"', "")
    for name, member in vars(CONTRACTS[kind]).items():
        if name.startswith("_") or isinstance(member, property):
            continue
        signature = inspect.signature(member)
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
        told = str(signature.replace(parameters=parameters)).replace("'", "")
        assert f"{name}{told}" in text
    assert "PluginError" in text


def surface() -> Iterator[str]:
    """Yields one line for every public name and for every public member of a public class."""
    for name in sorted(polyprune_core.__all__):
        value = getattr(polyprune_core, name)
        if not inspect.isclass(value):
            yield name + (signature(value) if inspect.isfunction(value) else "")
            continue
        made = not getattr(value, "_is_protocol", False) and not issubclass(value, Exception)
        yield name + (signature(value) if made else "")
        ours = [vars(each) for each in reversed(value.__mro__) if each.__module__.startswith("polyprune_core")]
        for member, held in sorted({name: held for each in ours for name, held in each.items()}.items()):
            if not member.startswith("_") and hasattr(held, "__get__"):
                yield f"    {member}" + (signature(held) if inspect.isfunction(held) else "")


def signature(value: Any) -> str:
    """Returns a signature as text that is the same on every machine."""
    return re.sub(r" at 0x\w+|'", "", str(inspect.signature(value)))


def test_the_interface_is_the_one_that_is_pinned() -> None:
    assert list(surface()) == PINNED.read_text("utf-8").splitlines()


def test_every_public_name_can_be_imported_and_none_is_listed_twice() -> None:
    assert len(set(polyprune_core.__all__)) == len(polyprune_core.__all__)
    for name in polyprune_core.__all__:
        assert getattr(polyprune_core, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = polyprune_core.no_such_name


@pytest.mark.parametrize("package", ["polyprune_core", "polyprune_plugins"])
def test_the_packages_tell_type_checkers_that_they_are_typed(package) -> None:
    (folder,) = importlib.import_module(package).__path__
    assert (Path(folder) / "py.typed").is_file()


if __name__ == "__main__":
    PINNED.write_text("".join(f"{line}\n" for line in surface()), encoding="utf-8")
