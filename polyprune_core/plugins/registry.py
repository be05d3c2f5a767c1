"""Loads every plugin on its own, so that a broken one stops nobody else, and finds providers by name."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pluggy

from polyprune_core.errors import PluginError, unknown_name
from polyprune_core.plugins import hookspecs
from polyprune_core.plugins.contracts import Provider
from polyprune_core.plugins.guard import Guarded
from polyprune_core.plugins.options import build, parse_spec

KINDS = {
    "granularity": "polyprune_granularities",
    "initializer": "polyprune_initializers",
    "estimator": "polyprune_estimators",
    "exporter": "polyprune_exporters",
}
# Whatever a stranger's module raises must not stop the others.
FAULTS = (Exception, SystemExit)
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Source:
    """The distribution that a plugin comes from."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Registered:
    """A usable provider, what it provides and where it comes from."""

    kind: str
    provider: Provider[Any]
    source: Source


@dataclass(frozen=True)
class PluginProblem:
    """A plugin, or one of its providers, that cannot be used, and why."""

    plugin: str
    source: Source
    message: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.plugin} ({self.source}): {self.message}"


class Registry:
    """All usable providers by kind and name, and the problems met while loading."""

    def __init__(self, registered: Iterable[Registered], problems: Iterable[PluginProblem]) -> None:
        self._by_name = {(item.kind, item.provider.name): item for item in registered}
        self.problems = tuple(problems)

    def all(self, kind: str | None = None) -> list[Registered]:
        """Returns providers of one kind, or of all kinds, by kind and name."""
        order = list(KINDS)
        chosen = [item for item in self._by_name.values() if kind in (None, item.kind)]
        return sorted(chosen, key=lambda item: (order.index(item.kind), item.provider.name))

    def get(self, kind: str, spec: str) -> Registered:
        """Returns the provider that `spec` (NAME or NAME:option=value…) names.

        Raises:
            PluginError: there is none, or the plugin that has it is broken.
        """
        name, _ = parse_spec(spec)
        if (kind, name) in self._by_name:
            return self._by_name[kind, name]
        message = unknown_name(kind, name, [item.provider.name for item in self.all(kind)])
        blamed = [problem for problem in self.problems if name in (*problem.names, problem.plugin)]
        raise PluginError("\n".join([message, *map(str, blamed)]))

    def build(self, kind: str, spec: str) -> Any:
        """Returns the implementation that `spec` names, made with its options; its faults name its distribution.

        Raises:
            PluginError: no such provider, an unknown option, or a value of the wrong type.
        """
        item = self.get(kind, spec)
        blame = f"{kind} {item.provider.name!r} of {item.source}"
        try:
            return Guarded(build(kind, item.provider, parse_spec(spec)[1]), blame)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"{blame} cannot be made: {_describe(error)}") from error


def load_registry(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Registry:
    """Loads the plugins of the entry-point group "polyprune", or the ones given.

    Raises:
        PluginError: POLYPRUNE_STRICT_PLUGINS=1 is set and a plugin has a problem.
    """
    points = importlib.metadata.entry_points(group=hookspecs.PROJECT) if entry_points is None else entry_points
    found: list[Registered] = []
    problems: list[PluginProblem] = []
    for point in sorted(points, key=lambda p: (_source(p).distribution, p.name)):
        loaded, trouble = _load(point)
        found += loaded
        problems += trouble
    found, clashes = _without_clashes(found)
    problems += clashes
    if problems and os.environ.get("POLYPRUNE_STRICT_PLUGINS") == "1":
        raise PluginError("plugins are checked strictly and some have problems:\n" + "\n".join(map(str, problems)))
    return Registry(found, problems)


def _source(point: importlib.metadata.EntryPoint) -> Source:
    return Source(point.dist.name, point.dist.version) if point.dist else Source("unknown distribution", "")


def _load(point: importlib.metadata.EntryPoint) -> tuple[list[Registered], list[PluginProblem]]:
    source = _source(point)
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(point.load(), name=f"{source.distribution}:{point.name}")
        manager.check_pending()
    except FAULTS as error:
        return [], [PluginProblem(point.name, source, _describe(error))]
    found: list[Registered] = []
    problems: list[PluginProblem] = []
    for kind, hook in KINDS.items():
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            try:
                providers = list(implementation.function())
            except FAULTS as error:
                problems.append(PluginProblem(point.name, source, f"{hook}: {_describe(error)}"))
                continue
            for provider in providers:
                fault = _fault(provider)
                if fault:
                    problems.append(PluginProblem(point.name, source, f"{hook}: {fault}"))
                else:
                    found.append(Registered(kind, provider, source))
    return found, problems


def _describe(error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__


def _fault(provider: object) -> str:
    if not isinstance(provider, Provider):
        return f"yields a {type(provider).__name__} where a Provider is needed."
    if not isinstance(provider.name, str) or not NAME.fullmatch(provider.name):
        return f"the name {provider.name!r} is not lower-case words joined by dashes."
    if not isinstance(provider.summary, str) or not isinstance(provider.reference, str):
        return f"the summary and reference of {provider.name!r} are not text."
    if not callable(provider.factory):
        return f"the factory of {provider.name!r} is not callable."
    return ""


def _without_clashes(found: list[Registered]) -> tuple[list[Registered], list[PluginProblem]]:
    by_name: dict[tuple[str, str], list[Registered]] = {}
    for item in found:
        by_name.setdefault((item.kind, item.provider.name), []).append(item)
    problems = [
        PluginProblem(
            name,
            items[1].source,
            f"{kind} {name!r} is provided by {' and by '.join(str(i.source) for i in items)}; uninstall one.",
            (name,),
        )
        for (kind, name), items in by_name.items()
        if len(items) > 1
    ]
    return [items[0] for items in by_name.values() if len(items) == 1], problems
