"""Which plugins are installed, for which version of the plugin interface, and which of them the user switched off.

A distribution declares its plugins, and with them the interface they are written for, in its entry points:
`[project.entry-points.polyprune]` is version 1, `[project.entry-points.polyprune2]` would be version 2. That is read
before any code of the plugin runs, so that one from the future is refused by its version, not by what it fails to
import.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from polyprune_core.errors import plain
from polyprune_core.plugins.hookspecs import API_VERSION, PROJECT

GROUP = re.compile(PROJECT + r"(\d*)")
# What authors may take for the group: without a word such plugins would just not be there.
MISTAKEN = re.compile(
    PROJECT + r"[._-]?(v?\d+|plugins?|granularit(y|ies)|initiali[sz]ers?|polic(y|ies)|estimators?|repairs?|exporters?)",
    re.IGNORECASE,
)
FIRST_PARTY = "polyprune"
DISABLE, NO_EXTERNAL, STRICT = "POLYPRUNE_DISABLE", "POLYPRUNE_NO_EXTERNAL", "POLYPRUNE_STRICT_PLUGINS"


@dataclass(frozen=True)
class Source:
    """The distribution that a plugin comes from, and the version of the interface it is written for."""

    distribution: str
    version: str
    api: int = field(default=1, compare=False)

    @property
    def is_own(self) -> bool:
        """Whether it is polyprune itself."""
        return normal(self.distribution) == FIRST_PARTY

    def __str__(self) -> str:
        return plain(f"{self.distribution} {self.version}")


@dataclass(frozen=True)
class PluginProblem:
    """A plugin, or one of its providers, that cannot be used, and why; `trace` is where its code failed."""

    plugin: str
    source: Source
    message: str
    names: tuple[str, ...] = ()
    trace: str = field(default="", compare=False)

    def __str__(self) -> str:
        return plain(f"{self.plugin} ({self.source}): {self.message}")


@dataclass(frozen=True)
class Switched:
    """What the user switched off by environment variables."""

    words: frozenset[str]
    external: bool

    @classmethod
    def by_environment(cls) -> Switched:
        """Reads POLYPRUNE_DISABLE (names of plugins or distributions) and POLYPRUNE_NO_EXTERNAL."""
        words = (normal(word) for word in os.environ.get(DISABLE, "").split(","))
        return cls(frozenset(word for word in words if word), is_set(NO_EXTERNAL))

    def off(self, name: str, source: Source) -> str:
        """Returns why the plugin `name` of that source is off, or nothing where it is not."""
        if self.external and not source.is_own:
            return "switched off: only polyprune's own plugins are wanted (--no-external)."
        if {normal(name), normal(source.distribution)} & self.words:
            return f"switched off by {DISABLE}."
        return ""


def normal(name: str) -> str:
    """Returns a name of a plugin or distribution as registries compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


def sourced(
    points: Iterable[importlib.metadata.EntryPoint],
) -> list[tuple[importlib.metadata.EntryPoint, Source]]:
    """Returns each entry point and where it comes from; version 1 of the interface unless its group says otherwise."""
    named: dict[int, tuple[str, str]] = {}  # its metadata is read once: that takes as long as an import
    found = []
    for point in points:
        group = GROUP.fullmatch(getattr(point, "group", PROJECT))
        if point.dist and id(point.dist) not in named:
            named[id(point.dist)] = (point.dist.name, point.dist.version)
        name, version = named[id(point.dist)] if point.dist else ("unknown distribution", "")
        found.append((point, Source(name, version, int(group[1] or 1) if group else 1)))
    return found


def usable(
    points: Iterable[importlib.metadata.EntryPoint],
) -> tuple[list[tuple[importlib.metadata.EntryPoint, Source]], list[PluginProblem]]:
    """Returns the entry points that this polyprune can load and their sources, and what is wrong with the others.

    Of several with one name in one distribution, which serve several versions of the interface, the newest is taken.
    """
    good: list[tuple[importlib.metadata.EntryPoint, Source]] = []
    problems: dict[tuple[str, str], PluginProblem] = {}
    newest: dict[tuple[str, str], int] = {}
    for point, source in sorted(sourced(points), key=lambda item: (item[1].distribution, item[0].name)):
        key, group = (source.distribution, point.name), getattr(point, "group", PROJECT)
        if not GROUP.fullmatch(group):
            message = f"the entry-point group {group!r} is read by nobody; write [project.entry-points.{PROJECT}]."
            problems[key] = PluginProblem(point.name, source, message)
        elif source.api > API_VERSION:
            message = (
                f"is written for version {source.api} of the plugin interface; this polyprune has version "
                f"{API_VERSION}. Install a newer polyprune, or an older {source.distribution}."
            )
            problems[key] = PluginProblem(point.name, source, message)
        else:
            good.append((point, source))
            newest[key] = max(source.api, newest.get(key, 0))
    chosen = [(point, source) for point, source in good if source.api == newest[source.distribution, point.name]]
    return chosen, [problem for key, problem in problems.items() if key not in newest]


def is_ours(group: str) -> bool:
    """Whether an entry-point group is polyprune's, or was meant to be."""
    return bool(GROUP.fullmatch(group) or MISTAKEN.fullmatch(group))


def installed() -> list[importlib.metadata.EntryPoint]:
    """Returns every installed entry point of polyprune's groups, and those that were meant to be."""
    points = importlib.metadata.entry_points()
    return [point for group in sorted(filter(is_ours, points.groups)) for point in points.select(group=group)]
