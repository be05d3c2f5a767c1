"""Who may import whom, read from the sources; and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import polyprune_core

CORE = Path(polyprune_core.__file__).parent
PLUGINS = Path(__file__).resolve().parents[2] / "plugins" / "polyprune_plugins"

# From the ground up: a package, or a module at the top, imports itself and those before it. None is left out.
HOUSE = (
    "errors",
    "version",
    "utils",
    "config",
    "models",
    "pruning",
    "evaluation",
    "plugins",
    "search",
    "results",
    "report",
    "runs",
    "api",
    "testing",
    "cli",
)
HEAVY = {"torch", "transformers", "datasets", "safetensors", "scipy", "numpy"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` as written, `name` what is taken from it (empty for a plain import).

    `for_types`: under TYPE_CHECKING, so it never runs.
    """

    module: str
    name: str
    in_function: bool
    for_types: bool
    line: int


@cache
def imports(path: Path) -> list[Import]:
    """Returns everything that a source file imports."""

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for branch, types in ((node.body, True), (node.orelse, for_types)):
                for child in branch:
                    yield from walk(child, in_function, types)
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", in_function, for_types, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield from (Import(module, alias.name, in_function, for_types, node.lineno) for alias in node.names)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, for_types)

    return list(walk(ast.parse(path.read_text("utf-8"), str(path)), False, False))


def modules(folder: Path) -> dict[str, Path]:
    """Returns the sources below a package by dotted name, without the package's own; "" is the package itself."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


CORE_MODULES, PLUGIN_MODULES = modules(CORE), modules(PLUGINS)


def in_core(item: Import) -> str | None:
    """Returns the core module that an import reaches, "" for the package itself, None for one outside of the core."""
    if item.module.split(".")[0] != "polyprune_core":
        return None
    lazy = polyprune_core._LAZY.get(item.name) if item.module == "polyprune_core" else None
    module = (lazy or item.module).removeprefix("polyprune_core").removeprefix(".")
    inner = f"{module}.{item.name}".removeprefix(".")
    return inner if item.name and inner in CORE_MODULES else module


def place(module: str) -> int:
    """Returns where in the house a module of the core stands."""
    return HOUSE.index(module.partition(".")[0])


def reached(module: str) -> dict[str, Import]:
    """Returns the other core modules that one imports in any way, for types and within functions too."""
    found = {in_core(item): item for item in imports(CORE_MODULES[module])}
    return {target: item for target, item in found.items() if target is not None and target != module}


def test_the_house_has_a_place_for_every_module_and_no_empty_one() -> None:
    assert {module.partition(".")[0] for module in CORE_MODULES} - {""} == set(HOUSE)
    assert len(PLUGIN_MODULES) > 12


def test_the_rules_read_every_import(tmp_path) -> None:
    source = tmp_path / "sample.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    import json\n"
        "def f():\n    from polyprune_core import PrunedModel, config\n"
        "class C:\n    import os.path\n    def m(self):\n        import polyprune_core.search.loop\n"
    )
    found = imports(source)
    assert [(i.module, i.name, i.in_function, i.for_types) for i in found] == [
        ("typing", "TYPE_CHECKING", False, False),
        ("torch", "", False, True),
        ("json", "", False, False),
        ("polyprune_core", "PrunedModel", True, False),
        ("polyprune_core", "config", True, False),
        ("os.path", "", False, False),
        ("polyprune_core.search.loop", "", True, False),
    ]
    expected = [None, None, None, "pruning.pruned_model", "config", None, "search.loop"]
    assert [in_core(i) for i in found] == expected


def broken(found: dict[str, list[Import]], rule: Callable[[str, Import], bool]) -> list[str]:
    """Returns the imports of all modules that break a rule, one a line."""
    return [f"{m}:{i.line} imports {i.module} {i.name}" for m, items in found.items() for i in items if not rule(m, i)]


def imports_of(sources: dict[str, Path]) -> dict[str, list[Import]]:
    return {module: imports(path) for module, path in sources.items()}


def test_the_core_never_imports_the_plugins() -> None:
    assert broken(imports_of(CORE_MODULES), lambda _, item: item.module.split(".")[0] != "polyprune_plugins") == []


def test_a_core_module_imports_no_package_above_its_own() -> None:
    """The package itself, whose name is empty, is above everything."""
    above = [
        f"{module}:{item.line} imports {target or 'the package itself'}"
        for module in CORE_MODULES
        for target, item in (reached(module).items() if module else ())
        if not target or place(target) > place(module)
    ]
    assert above == []


def test_the_core_has_no_circle_of_files() -> None:
    graph = {module: reached(module).keys() for module in CORE_MODULES if module}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def public_alone(_: str, item: Import) -> bool:
    """Whether an import of the core is of one of its public names."""
    of_core = item.module.split(".")[0] == "polyprune_core"
    return not of_core or (item.module == "polyprune_core" and item.name in polyprune_core.__all__)


def light(_: str, item: Import) -> bool:
    """Whether an import at the top of a module is of nothing but the core, its plugins and the standard library."""
    allowed = {*sys.stdlib_module_names, "__future__", "polyprune_core", "polyprune_plugins"}
    return item.in_function or item.for_types or item.module.split(".")[0] in allowed


def own(module: str, item: Import) -> bool:
    """Whether a plugin imports no other: one that is a package, as exporters.gguf, has modules of its own."""
    package = ".".join(["polyprune_plugins", *module.split(".")[:2], ""])
    return item.module.split(".")[0] != "polyprune_plugins" or ("." in module and item.module.startswith(package))


def test_every_rule_finds_what_breaks_it() -> None:
    inner = Import("polyprune_core.search.loop", "search", True, False, 3)
    heavy = Import("torch", "", False, False, 4)
    other = Import("polyprune_plugins.initializers.wanda", "Wanda", True, False, 5)
    found = {"initializers.mine": [inner, heavy, other, Import("json", "", False, False, 6)]}
    assert [broken(found, rule)[0].split()[0] for rule in (public_alone, light, own)] == [
        "initializers.mine:3",
        "initializers.mine:4",
        "initializers.mine:5",
    ]


@pytest.mark.parametrize("rule", [public_alone, light, own], ids=lambda rule: rule.__name__)
def test_a_plugin_imports_public_names_alone_nothing_heavy_and_no_other_plugin(rule) -> None:
    assert broken(imports_of(PLUGIN_MODULES), rule) == []


def test_importing_the_core_the_command_line_and_every_plugin_loads_no_torch() -> None:
    plugins = [f"polyprune_plugins.{name}".rstrip(".") for name in PLUGIN_MODULES]
    program = f"""
import importlib, sys
sys.path[:0] = {[str(CORE.parent), str(PLUGINS.parent)]!r}
for name in {["polyprune_core", "polyprune_core.cli", *plugins]!r}:
    importlib.import_module(name)
    loaded = sorted({HEAVY!r} & sys.modules.keys())
    assert not loaded, f"{{name}} loads {{loaded}}"
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr


DISTRIBUTIONS = sorted(PLUGINS.parent.glob("polyprune-*/polyprune_*/**/*.py"))


@pytest.mark.parametrize("rule", [public_alone, light], ids=lambda rule: rule.__name__)
def test_a_distribution_of_its_own_leans_on_public_names_alone(rule) -> None:
    assert broken({path.parent.name: imports(path) for path in DISTRIBUTIONS}, rule) == []


def test_there_are_distributions_to_check() -> None:
    assert {path.parent.name for path in DISTRIBUTIONS} == {"polyprune_example", "polyprune_evolution"}


WITHOUT = """
import sys
import pytest

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"{name} is not to be had")

sys.meta_path.insert(0, Missing())
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", sys.argv[1]]))
"""


def test_pure_tests_are_collected_where_there_is_no_torch() -> None:
    pure = Path(__file__).parents[1] / "pure"
    run = subprocess.run([sys.executable, "-c", WITHOUT, str(pure)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
