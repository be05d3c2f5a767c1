"""Runs the checks of `polyprune_core.testing.checks` on plugins: as pytest tests, or as a list of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal

from polyprune_core.errors import PluginError, unknown_name
from polyprune_core.plugins.guard import FAULTS, described, require_no_interrupt
from polyprune_core.plugins.hookspecs import PROJECT
from polyprune_core.plugins.registry import Registered, Registry, load_registry
from polyprune_core.testing.checking import Check, NotRun, world_restored
from polyprune_core.testing.checks import checks_for


@dataclass(frozen=True)
class CheckResult:
    """The result of one check of one plugin; `message` says what is wrong, why it was not run, or why it may fail."""

    kind: str
    plugin: str
    check: str
    status: Literal["passed", "failed", "not run", "excused"]
    message: str = ""


class PluginChecks:
    """The checks of one plugin; each is run once, and those that build on a failed one are not run."""

    def __init__(self, plugin: Registered) -> None:
        self.plugin = plugin
        self.checks = {check.name: check for check in checks_for(plugin.kind)}
        declared = plugin.provider.xfail.items()
        self.excused = {name: why for name, why in declared if name in self.checks and self.checks[name].excusable}
        self._outcomes: dict[str, BaseException | None] = {}

    def run(self, name: str) -> None:
        """Raises what the check raises: NotRun, AssertionError, or the plugin's own exception."""
        if name not in self._outcomes:
            try:
                self._run(self.checks[name])
                self._outcomes[name] = None
            except FAULTS as error:
                require_no_interrupt(error)
                self._outcomes[name] = error
        outcome = self._outcomes[name]
        if outcome is not None:
            raise outcome

    def _run(self, check: Check) -> None:
        for before in check.after:
            try:
                self.run(before)
            except NotRun:
                raise
            except FAULTS as error:
                raise NotRun(f"{before} fails") from error
        with world_restored():
            check.run(self.plugin)

    def result(self, name: str) -> CheckResult:
        """Returns how the check went; an excused one has to fail."""
        status: Literal["passed", "failed", "not run", "excused"]
        reason = self.excused.get(name)
        try:
            self.run(name)
            status, message = "passed", ""
            if reason:
                status, message = "failed", f"passes, although the plugin says that it cannot: {reason}"
        except NotRun as why:
            status, message = "not run", str(why)
        except FAULTS as error:
            status, message = "failed", str(error) if isinstance(error, AssertionError) else described(error)
            if reason:
                status, message = "excused", reason
        return CheckResult(self.plugin.kind, self.plugin.provider.name, name, status, message)


def run_checks(items: Iterable[Registered]) -> list[CheckResult]:
    """Returns the result of every check of every plugin, plugin by plugin; a plugin's exceptions are results."""
    examinations = [PluginChecks(item) for item in items]
    return [examination.result(name) for examination in examinations for name in examination.checks]


def conformance_tests(plugins: ModuleType | Registry, xfail: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Returns a test function for pytest, with one case for every check of every plugin.

    Args:
        plugins: a module with hooks, or a registry of plugins.
        xfail: maps "plugin/check", the name of a case, to the reason why that check fails, in addition to what the
            providers of the plugins declare. If such a check passes, the case fails. If plugins of two kinds have the
            same name, write "kind:plugin/check".

    Raises:
        PluginError: a plugin cannot be used, there is no plugin, or `xfail` names an unknown check or gives no reason.
    """
    import pytest

    registry = plugins if isinstance(plugins, Registry) else registry_of(plugins)
    items = registry.all()
    if registry.problems or not items:
        raise PluginError("\n".join(map(str, registry.problems)) or "the registry holds no plugin.")
    cases = _cases(items)
    declared = {key: examination.excused.get(check) for key, (examination, check) in cases.items()}
    expected = {key: reason for key, reason in declared.items() if reason} | dict(xfail or {})
    for key, reason in expected.items():
        if key not in cases:
            raise PluginError("xfail: " + unknown_name("check", key, cases))
        if not reason.strip():
            raise PluginError(f"xfail: {key!r} has no reason; say why the plugin is right to fail this check.")
    marked = [
        pytest.param(
            *case, id=key, marks=[pytest.mark.xfail(strict=True, reason=expected[key])] if key in expected else []
        )
        for key, case in cases.items()
    ]

    @pytest.mark.parametrize(("examination", "check"), marked)
    def test_conformance(examination: Any, check: str) -> None:
        try:
            examination.run(check)
        except NotRun as reason:
            pytest.skip(str(reason))

    run: Callable[..., None] = test_conformance
    return run


def _cases(items: list[Registered]) -> dict[str, tuple[PluginChecks, str]]:
    shared = Counter(item.provider.name for item in items)
    cases: dict[str, tuple[PluginChecks, str]] = {}
    for item in items:
        name, examination = item.provider.name, PluginChecks(item)
        label = f"{item.kind}:{name}" if shared[name] > 1 else name
        cases |= {f"{label}/{check}": (examination, check) for check in examination.checks}
    return cases


def registry_of(module: ModuleType) -> Registry:
    """Returns the registry of the plugins in a module alone."""
    return load_registry([EntryPoint(module.__name__, module.__name__, PROJECT)])
