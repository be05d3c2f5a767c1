"""Runs the checks of `polyprune_core.testing.checks` on plugins: as pytest tests, or as a list of results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal

from polyprune_core.errors import PluginError, unknown_name
from polyprune_core.plugins.hookspecs import PROJECT
from polyprune_core.plugins.registry import KINDS, Registered, Registry, load_registry
from polyprune_core.testing.checking import Check, NotRun, world_restored
from polyprune_core.testing.checks import checks_for

FAULTS = (Exception, SystemExit)  # whatever a plugin raises is what its check found


@dataclass(frozen=True)
class CheckResult:
    """How one check of one plugin went; `message` says what is wrong, or why it was not run."""

    kind: str
    plugin: str
    check: str
    status: Literal["passed", "failed", "not run"]
    message: str = ""


class Examination:
    """The checks of one plugin; each is run once, and those that build on a failed one are not run."""

    def __init__(self, plugin: Registered) -> None:
        self.plugin = plugin
        self.checks = {check.name: check for check in checks_for(plugin.kind)}
        self._outcomes: dict[str, BaseException | None] = {}

    def run(self, name: str) -> None:
        """Raises what the check raises: NotRun, AssertionError, or the plugin's own exception."""
        if name not in self._outcomes:
            try:
                self._run(self.checks[name])
                self._outcomes[name] = None
            except FAULTS as error:
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
        """Returns how the check went."""
        try:
            self.run(name)
        except NotRun as reason:
            return CheckResult(self.plugin.kind, self.plugin.provider.name, name, "not run", str(reason))
        except FAULTS as error:
            message = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            return CheckResult(self.plugin.kind, self.plugin.provider.name, name, "failed", message)
        return CheckResult(self.plugin.kind, self.plugin.provider.name, name, "passed")


def run_checks(items: Iterable[Registered]) -> list[CheckResult]:
    """Returns the result of every check of every plugin, plugin by plugin; a plugin's exceptions are results."""
    examinations = [Examination(item) for item in items]
    return [examination.result(name) for examination in examinations for name in examination.checks]


def conformance_tests(plugins: ModuleType | Registry, xfail: Mapping[str, str] | None = None) -> Callable[..., None]:
    """Returns a test function for pytest, with one case for every check of every plugin.

    `plugins` is a module with hooks, or a registry. `xfail` maps "plugin/check", as the cases are called, to the reason
    why that check fails; one that passes is a failure. A plugin whose name another kind uses too is "kind:plugin".

    Raises:
        PluginError: a plugin cannot be used, there is none, or `xfail` names no check or gives no reason.
    """
    import pytest

    registry = plugins if isinstance(plugins, Registry) else registry_of(plugins)
    items = registry.all()
    if registry.problems or not items:
        raise PluginError("\n".join(map(str, registry.problems)) or "the registry holds no plugin.")
    expected = dict(xfail or {})
    cases = _cases(items)
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


def _cases(items: list[Registered]) -> dict[str, tuple[Examination, str]]:
    shared = Counter(item.provider.name for item in items)
    cases: dict[str, tuple[Examination, str]] = {}
    for item in items:
        name, examination = item.provider.name, Examination(item)
        label = f"{item.kind}:{name}" if shared[name] > 1 else name
        cases |= {f"{label}/{check}": (examination, check) for check in examination.checks}
    return cases


def registry_of(module: ModuleType) -> Registry:
    """Returns the registry of the plugins in a module alone.

    Raises:
        PluginError: it defines none.
    """
    registry = load_registry([EntryPoint(module.__name__, module.__name__, PROJECT)])
    if not registry.all() and not registry.problems:
        hooks = ", ".join(KINDS.values())
        raise PluginError(f"{module.__name__} registers no plugin; it needs one of {hooks}, marked with @hookimpl.")
    return registry
