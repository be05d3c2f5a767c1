"""Loads every plugin on its own, so that a broken one stops nobody else, and finds providers by name."""

from __future__ import annotations

import inspect
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pluggy

from polyprune_core.errors import PluginError, plain, unknown_name
from polyprune_core.plugins import hookspecs
from polyprune_core.plugins.contracts import NEEDS, Provider, adds_biases
from polyprune_core.plugins.decorator import providers_in
from polyprune_core.plugins.discovery import (
    DISABLE,
    STRICT,
    PluginProblem,
    Source,
    Switched,
    installed,
    is_set,
    usable,
)
from polyprune_core.plugins.guard import FAULTS, Guarded, blamed, described, listed, require_no_interrupt, traced
from polyprune_core.plugins.options import build, parse_spec
from polyprune_core.plugins.process import settings_kept
from polyprune_core.pruning.types import Scores

if TYPE_CHECKING:
    from torch import nn

    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.models.layout import ModelLayout
    from polyprune_core.pruning.space import MaskSpace

__all__ = ["KINDS", "NAME", "PluginProblem", "Registered", "Registry", "Source", "load_registry"]

KINDS = {
    "granularity": "polyprune_granularities",
    "initializer": "polyprune_initializers",
    "policy": "polyprune_policies",
    "estimator": "polyprune_estimators",
    "repair": "polyprune_repairs",
    "exporter": "polyprune_exporters",
}
MOST = 1_000
SLOW_SECONDS = 5.0
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Registered:
    """A usable provider, what it provides and where it comes from."""

    kind: str
    provider: Provider[Any]
    source: Source

    @property
    def blame(self) -> str:
        """Who is at fault where it fails."""
        return f"{self.kind} {self.provider.name!r} of {self.source}"


class Registry:
    """All usable providers by kind and name, the problems met while loading, and what the user switched off."""

    def __init__(
        self, registered: Iterable[Registered], problems: Iterable[PluginProblem], off: Iterable[PluginProblem] = ()
    ) -> None:
        self._by_name = {(item.kind, item.provider.name): item for item in registered}
        self.problems, self.off = tuple(problems), tuple(off)

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
        raise self.unknown(kind, name)

    def unknown(self, what: str, name: str) -> PluginError:
        """Returns the error for a name that there is not; `what` is a kind, or "plugin" for any of them."""
        known = [item.provider.name for item in self.all(what if what in KINDS else None)]
        reasons = [problem for problem in (*self.problems, *self.off) if name in (*problem.names, problem.plugin)]
        return PluginError("\n".join([unknown_name(what, name, known), *map(str, reasons)]))

    def build(self, kind: str, spec: str) -> Any:
        """Returns the implementation that `spec` names, made with its options; its faults name its distribution.

        Raises:
            PluginError: no such provider, an unknown option, or a value of the wrong type.
        """
        item = self.get(kind, spec)
        with blamed(item.blame), settings_kept(item.blame):
            made = build(kind, item.provider, parse_spec(spec)[1])
        return Guarded(made, kind, item.blame)

    def outside(self, *plugins: tuple[str, str]) -> str:
        """Returns who is to blame of those (kind, spec) that do not come from polyprune itself, or nothing."""
        items = [self.get(kind, spec) for kind, spec in plugins]
        return " or ".join(item.blame for item in items if not item.source.is_own)

    def measure(self, spec: str, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Scores:
        """Returns the scores of the metric that `spec` names.

        They are comparable across layers where it says so, and where it needs a budget.

        Raises:
            PluginError: as `build`, or the metric is at fault.
        """
        values = self.build("initializer", spec).score(model, space, calibration)
        return Scores(values.detach().cpu().float(), spec, self.comparable(spec))

    def space(self, granularity: str, layout: ModelLayout) -> MaskSpace:
        """Returns the units of "head+channel" and the like: the units of all its parts.

        Raises:
            ConfigError: there is none, or two parts remove the same entries.
            PluginError: as `build`, or a granularity is at fault.
        """
        from polyprune_core.pruning.space import MaskSpace

        made = [self.build("granularity", name) for name in granularity.split("+")]
        groups = [group for each in made for group in each.groups(layout)]
        return MaskSpace(layout, groups, granularity, "; ".join(filter(None, (each.if_none for each in made))))

    def adds_biases(self, spec: str) -> bool:
        """Whether the repair that `spec` names, or one that it starts from, adds biases where readers have none."""
        return adds_biases(self.build("repair", spec), lambda start: self.build("repair", start))

    def comparable(self, spec: str) -> bool:
        """Whether the scores of the metric that `spec` names are comparable across layers, so that no scale applies."""
        return self.for_one_budget(spec) or bool(self.build("initializer", spec).comparable)

    def for_one_budget(self, spec: str) -> bool:
        """Whether the metric that `spec` names measures anew for every budget."""
        return "budget" in self.get("initializer", spec).provider.needs

    def holds_text_back(self, spec: str) -> bool:
        """Whether the metric that `spec` names chooses by loss on text held back."""
        return "held-back" in self.get("initializer", spec).provider.needs


def load_registry(entry_points: Iterable[EntryPoint] | None = None) -> Registry:
    """Loads the installed plugins but those that are switched off, or the ones given.

    Raises:
        PluginError: POLYPRUNE_STRICT_PLUGINS=1 is set and a plugin has a problem.
    """
    points, problems = usable(installed() if entry_points is None else entry_points)
    switched = Switched.by_environment() if entry_points is None else Switched(frozenset(), False)
    found: list[Registered] = []
    off: list[PluginProblem] = []
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    with slow_ones_told() as turn:
        for point, source in points:
            reason = switched.off(point.name, source)
            if reason:
                off.append(PluginProblem(point.name, source, reason))
                continue
            turn(f"plugin {point.name} of {source}")
            loaded, trouble = _load(manager, point, source)
            problems += trouble
            for item in loaded:
                reason = switched.off(item.provider.name, source)
                if reason:
                    off.append(PluginProblem(item.provider.name, source, reason))
                else:
                    found.append(item)
    found, clashes = _without_clashes(found)
    problems += clashes
    if problems and is_set(STRICT):
        raise PluginError("plugins are checked strictly and some have problems:\n" + "\n".join(map(str, problems)))
    return Registry(found, problems, off)


@contextmanager
def slow_ones_told() -> Iterator[Callable[[str], None]]:
    """Says on stderr whose import it is that takes long; what it yields is told whose turn it is."""
    turns: list[tuple[str, float]] = []
    over = threading.Event()

    def watch() -> None:
        told = 0
        while not over.wait(SLOW_SECONDS / 10):
            what, since = turns[-1]
            if told < len(turns) and time.monotonic() - since >= SLOW_SECONDS:
                told = len(turns)
                sys.stderr.write(
                    f"polyprune: {plain(what)} has been importing for {SLOW_SECONDS:g} seconds; Ctrl-C stops it.\n"
                )
                sys.stderr.flush()

    def turn(what: str) -> None:
        turns.append((what, time.monotonic()))

    turn("polyprune")
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield turn
    finally:
        over.set()


def _load(
    manager: pluggy.PluginManager, point: EntryPoint, source: Source
) -> tuple[list[Registered], list[PluginProblem]]:
    found: list[Registered] = []
    problems: list[PluginProblem] = []

    def add(kind: str, providers: Iterable[object], prefix: str) -> None:
        for provider in providers:
            if fault := _fault(provider):
                problems.append(PluginProblem(point.name, source, prefix + fault))
            elif isinstance(provider, Provider):
                found.append(Registered(kind, provider, source))

    with redirect_stdout(sys.stderr):
        try:
            with settings_kept("its import"):
                plugin = point.load()
            manager.register(plugin, name=f"{source.distribution}:{point.name}")
            manager.check_pending()
            implemented = [
                (kind, one) for kind, hook in KINDS.items() for one in getattr(manager.hook, hook).get_hookimpls()
            ]
        except FAULTS as error:
            require_no_interrupt(error)
            told = str(error) if isinstance(error, PluginError) else described(error)
            return [], [PluginProblem(point.name, source, told, trace=traced(error))]
        finally:
            for _, each in manager.list_name_plugin():  # so that none has a part in the trouble of the next
                manager.unregister(each)
        for kind, implementation in implemented:
            hook = KINDS[kind]
            try:
                with settings_kept("it"):
                    provided = listed(iter(implementation.function()), MOST, "it")
                add(kind, provided, f"{hook}: ")
            except FAULTS as error:
                require_no_interrupt(error)
                told = f"{hook}: {str(error) if isinstance(error, PluginError) else described(error)}"
                problems.append(PluginProblem(point.name, source, told, trace=traced(error)))
        add("initializer", providers_in(plugin), "")
    if not found and not problems:
        needed = f"one of {', '.join(KINDS.values())}, marked with @hookimpl, or a function marked with @initializer"
        problems.append(PluginProblem(point.name, source, f"{point.value} registers no plugin; it needs {needed}."))
    return found, problems


def _fault(provider: object) -> str:
    if not isinstance(provider, Provider):
        return f"yields a {type(provider).__name__} where a Provider is needed."
    name = provider.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"the name {name!r} is not lower-case words joined by dashes."
    if not isinstance(provider.summary, str) or not isinstance(provider.reference, str):
        return f"the summary and reference of {name!r} are not text."
    if not isinstance(provider.needs, frozenset) or not provider.needs <= NEEDS:
        return f"the needs of {name!r} are {provider.needs!r}; a frozenset out of {', '.join(sorted(NEEDS))} is needed."
    try:
        inspect.signature(provider.factory)
    except FAULTS as error:  # also what a stranger's own signature raises
        require_no_interrupt(error)
        return f"the factory of {name!r} is not callable, or does not tell its options."
    return ""


def _without_clashes(found: list[Registered]) -> tuple[list[Registered], list[PluginProblem]]:
    by_name: dict[tuple[str, str], list[Registered]] = {}
    for item in found:
        by_name.setdefault((item.kind, item.provider.name), []).append(item)
    kept: list[Registered] = []
    problems = []
    for (kind, name), items in by_name.items():
        own = [item for item in items if item.source.is_own]
        if len(items) == 1 or len(own) == 1:
            kept += own or items
            told = f"{kind} {name!r} is a name of polyprune's own; this one needs another."
            problems += [PluginProblem(name, item.source, told, (name,)) for item in items if own and item not in own]
            continue
        told = (
            f"{kind} {name!r} is provided by {' and by '.join(str(i.source) for i in items)}; uninstall one, or switch "
            f"it off with {DISABLE}=DISTRIBUTION."
        )
        problems.append(PluginProblem(name, items[1].source, told, (name,)))
    return kept, problems
