"""`polyprune plugins check`: the conformance kit on one plugin, for its author."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from polyprune_core.cli.params import plugin_names
from polyprune_core.errors import ConfigError, PluginError, PolypruneError, plain, unknown_name
from polyprune_core.plugins.discovery import is_ours
from polyprune_core.plugins.hookspecs import PROJECT

if TYPE_CHECKING:
    from polyprune_core.plugins.registry import Registry, Source
    from polyprune_core.testing import CheckResult

STYLES = {"passed": "green", "failed": "bold red", "not run": "dim", "excused": "yellow"}


@click.command()
@click.argument("plugin", shell_complete=plugin_names())
def check(plugin: str) -> None:
    """Run the conformance kit on PLUGIN.

    PLUGIN is a plugin's name, an installed distribution, a module, or the path of a module or of a project folder,
    whose code is run as it is there; or a file of model families, by its name or path. Exit status: 0 all checks pass
    but those that the plugin is right to fail, and says so (excused); 1 one fails; 2 there is no such plugin.
    """
    from rich.markup import escape

    from polyprune_core.cli.console import stderr

    stderr().print(f"[dim]checking {escape(plain(plugin))} …[/]")
    try:
        # What a plugin prints by itself does not reach the terminal: it could hold control codes.
        origin: dict[tuple[str, str], Source] = {}
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            results = _examine_families(plugin)
            if not results:
                with _found(plugin) as registry:
                    results = _examine(registry)
                    items = [item for item in registry.all() if item.source.version]
                    origin = {(item.kind, item.provider.name): item.source for item in items}
    except PolypruneError as error:
        raise type(error)(plain(str(error))) from None
    _show(results, origin)
    sys.exit(1 if any(result.status == "failed" for result in results) else 0)


def _examine(registry: Registry) -> list[CheckResult]:
    from polyprune_core.testing import CheckResult, run_checks

    broken = [CheckResult("plugin", p.plugin, "loads", "failed", p.message) for p in registry.problems]
    return broken + run_checks(registry.all())


def _examine_families(what: str) -> list[CheckResult]:
    """Returns the results for a file of model families; none where `what` is no such file, project, or name."""
    from polyprune_core.models.families import GROUP, also, family_files
    from polyprune_core.testing.family import run_family_checks

    path = Path(os.path.expanduser(what))
    if path.is_dir() and (path / "pyproject.toml").is_file():
        points = _groups(path / "pyproject.toml").get(GROUP, {})
        files = [path.joinpath(*v.partition(":")[0].split("."), f"{v.partition(':')[2]}.toml") for v in points.values()]
    elif path.suffix == ".toml":
        files = [path]
    else:
        found = [file for file in family_files() if what in (file.name, file.source) and what != PROJECT]
        return [result for file in found for result in run_family_checks(file)]
    results: list[CheckResult] = []
    for each in files:
        with also(each) as file:
            results += run_family_checks(file)
    return results


def _show(results: list[CheckResult], origin: dict[tuple[str, str], Source]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=200, highlight=False)
    for kind, plugin in dict.fromkeys((result.kind, result.plugin) for result in results):
        source = origin.get((kind, plugin))
        console.print(Text(plain(f"{kind} {plugin} ({source})" if source else f"{kind} {plugin}"), style="bold"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("check", "result", "message"):
            table.add_column(column, no_wrap=column == "result", overflow="fold")
        for result in results:
            if (result.kind, result.plugin) == (kind, plugin):
                status = Text(result.status, style=STYLES[result.status])
                table.add_row(Text(result.check), status, Text(plain(result.message)))
        console.print(table)
    counts = {status: sum(result.status == status for result in results) for status in STYLES}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))


@contextmanager
def _found(what: str) -> Iterator[Registry]:
    """Yields what `what` stands for, at least one plugin; its modules can be imported inside the block.

    Raises:
        PluginError: there is no such plugin, or none in the module.
        ConfigError: there is no such path, or it is no Python.
    """
    from polyprune_core.plugins.registry import Registry, load_registry

    folders: list[Path] = []
    if os.sep in what or what.endswith(".py"):
        folders, points = _from_path(Path(os.path.realpath(os.path.expanduser(what))))
    else:
        registry = load_registry()
        name = what.lower().replace("_", "-")
        items = [item for item in registry.all() if name in (item.provider.name, item.source.distribution)]
        problems = [p for p in registry.problems if name in (*p.names, p.plugin, p.source.distribution)]
        if items or problems:
            yield Registry(items, problems)
            return
        if not _is_module(what):
            names = {item.provider.name for item in registry.all()}
            raise PluginError(unknown_name("plugin, distribution or module", what, names))
        points = [EntryPoint(what, what, PROJECT)]
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        _require_from(points, folders)
        yield load_registry(points)
    finally:
        sys.path[:] = before


def _from_path(path: Path) -> tuple[list[Path], list[EntryPoint]]:
    """Returns the folders to import from and the entry points to load."""
    if path.is_dir() and (path / "pyproject.toml").is_file():
        points = _entry_points(path / "pyproject.toml")
        return [folder for folder in (path / "src", path) if folder.is_dir()], points
    if path.is_dir() and not (path / "__init__.py").is_file():
        raise ConfigError(f"{path} has no pyproject.toml and no __init__.py; give a project, a package or a .py file.")
    if not path.exists():
        raise ConfigError(
            f"there is no file or folder {path}; give a plugin's name, a project, a package or a .py file."
        )
    if path.is_file() and path.suffix != ".py":
        raise ConfigError(f"{path} is no Python file; give a .py file, a package or a project.")
    names, parent = [path.stem], path.parent
    while (parent / "__init__.py").is_file():
        names, parent = [parent.name, *names], parent.parent
    module = ".".join(names).removesuffix(".__init__")
    return [parent], [EntryPoint(module, module, PROJECT)]


def _groups(pyproject: Path) -> dict[str, dict[str, str]]:
    """Returns the entry points of a project by name, in groups."""
    try:
        groups = tomllib.loads(pyproject.read_text("utf-8")).get("project", {}).get("entry-points", {})
        return {group: {name: str(value) for name, value in named.items()} for group, named in groups.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{pyproject} cannot be read: {error}. Write valid TOML there.") from error


def _entry_points(pyproject: Path) -> list[EntryPoint]:
    ours = {group: entries for group, entries in _groups(pyproject).items() if is_ours(group)}
    named = [(name, value, group) for group, entries in ours.items() for name, value in entries.items()]
    if not named:
        raise PluginError(f"{pyproject} has no [project.entry-points.{PROJECT}], so nothing would find its plugins.")
    for name, value, _ in named:
        if not EntryPoint.pattern.match(value):
            raise ConfigError(
                f"{pyproject}: {value!r}, the entry point {name}, is no name of a module; write MODULE or MODULE:NAME."
            )
    return [EntryPoint(*entry) for entry in named]


def _require_from(points: Iterable[EntryPoint], folders: list[Path]) -> None:
    """Raises ConfigError where an import would find another module of that name than the one at the path."""
    for point in points:
        top = point.module.partition(".")[0]
        spec = find_spec(top) if folders else None
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin and not any(origin.is_relative_to(folder) for folder in folders):
            raise ConfigError(f"the name {top} belongs to {origin}, so that yours is not imported; rename the module.")


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
    except Exception:  # noqa: BLE001 - of a.b, a was imported and raised: there is such a module, and it is broken
        return True
