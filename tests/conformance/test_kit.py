"""The kit itself: what it runs, what it does not, and that no expected failure goes unnoticed."""

from __future__ import annotations

import ast
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from broken import estimators, initializers
from broken.providers import Channels

import polyprune_plugins.initializers.random as random_plugin
import polyprune_plugins.initializers.wanda as wanda_plugin
from polyprune_core import Provider, testing
from polyprune_core.errors import PluginError
from polyprune_core.plugins.registry import KINDS, PluginProblem, Registered, Registry, Source, load_registry
from polyprune_core.testing import conformance_tests, run_checks
from polyprune_core.testing.checks import CHECKS, checks_for
from polyprune_core.testing.tiny import FAMILIES, tiny_base, tiny_model, tiny_tokenizer

SCORES = "scores_are_one_finite_number_a_unit"
SOURCE = Source("an-author", "1.0")


def cases_of(test: Any) -> dict[str, Any]:
    """Returns the parameters of a test function by the name of their case."""
    (mark,) = test.pytestmark
    return {parameter.id: parameter for parameter in mark.args[1]}


def registry(kind: str, factory: Any, name: str = "sound") -> Registry:
    return Registry([Registered(kind, Provider(name, "an example", factory), SOURCE)], [])


def test_a_module_gives_one_case_for_every_check() -> None:
    cases = cases_of(conformance_tests(wanda_plugin))
    assert list(cases) == [f"wanda/{check.name}" for check in checks_for("initializer")]
    assert not any(parameter.marks for parameter in cases.values())


def test_an_expected_failure_is_strict_and_carries_its_reason() -> None:
    key = "wanda/zero_channel_ranks_last"
    cases = cases_of(conformance_tests(wanda_plugin, xfail={key: "it does not look"}))
    (mark,) = cases[key].marks
    assert (mark.name, mark.kwargs) == ("xfail", {"strict": True, "reason": "it does not look"})
    assert sum(bool(parameter.marks) for parameter in cases.values()) == 1


def test_what_a_provider_declares_is_expected_too() -> None:
    declared = load_registry().get("initializer", "random").provider.xfail
    cases = cases_of(conformance_tests(random_plugin))
    marked = {key: parameter.marks[0].kwargs["reason"] for key, parameter in cases.items() if parameter.marks}
    assert marked == {f"random/{name}": reason for name, reason in declared.items()}


def test_an_excused_check_that_passes_is_a_failure() -> None:
    excused = Provider("sound", "an example", estimators.Sound, xfail={"every_draw_is_a_new_one": "it sweeps"})
    results = {r.check: r for r in run_checks([Registered("estimator", excused, SOURCE)])}
    assert results["every_draw_is_a_new_one"].status == "failed"
    assert "it sweeps" in results["every_draw_is_a_new_one"].message
    assert results["exceptions_are_allowed_and_have_reasons"].status == "passed"


def test_what_core_insists_on_cannot_be_excused() -> None:
    excused = Provider("sound", "an example", initializers.Crashes, xfail={SCORES: "it is like that"})
    results = {r.check: r for r in run_checks([Registered("initializer", excused, SOURCE)])}
    assert results[SCORES].status == "failed"
    assert results["exceptions_are_allowed_and_have_reasons"].status == "failed"
    assert "zero_channel_ranks_last" in results["exceptions_are_allowed_and_have_reasons"].message


@pytest.mark.parametrize(
    ("xfail", "message"),
    [
        ({"random/zero_chanel_ranks_last": "a slip"}, "Did you mean 'random/zero_channel_ranks_last'"),
        ({"zero_channel_ranks_last": "no plugin"}, "no check named"),
        ({"random/zero_channel_ranks_last": " "}, "has no reason"),
    ],
)
def test_an_expected_failure_that_names_no_check_or_no_reason_is_refused(xfail, message) -> None:
    with pytest.raises(PluginError, match=message):
        conformance_tests(random_plugin, xfail=xfail)


def test_a_module_without_a_plugin_is_refused() -> None:
    with pytest.raises(PluginError, match="sys registers no plugin; it needs one of polyprune_granularities"):
        conformance_tests(sys)


def test_a_module_that_cannot_be_used_is_refused_with_its_problem(monkeypatch) -> None:
    module = ModuleType("a_broken_plugin")
    module.polyprune_initializers = wanda_plugin.hookimpl(lambda: [Provider("Wrong Name", "x", Channels)])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(PluginError, match="'Wrong Name' is not lower-case words"):
        conformance_tests(module)


def test_a_registry_that_is_empty_or_has_problems_is_refused() -> None:
    with pytest.raises(PluginError, match="no plugin"):
        conformance_tests(Registry([], []))
    good = registry("granularity", Channels)
    with pytest.raises(PluginError, match="lost one"):
        conformance_tests(Registry(good.all(), [PluginProblem("other", SOURCE, "lost one")]))


def test_plugins_of_two_kinds_with_one_name_are_told_apart() -> None:
    items = [*registry("granularity", Channels).all(), *registry("estimator", estimators.Sound).all()]
    cases = cases_of(conformance_tests(Registry(items, [])))
    assert len(cases) == len(checks_for("granularity")) + len(checks_for("estimator"))
    assert {"granularity:sound/provider_can_be_listed", "estimator:sound/provider_can_be_listed"} <= cases.keys()


def test_a_case_fails_with_the_plugins_own_exception_and_skips_what_builds_on_it() -> None:
    test = conformance_tests(registry("initializer", initializers.Crashes))
    cases = cases_of(test)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        test(*cases["sound/scores_are_one_finite_number_a_unit"].values)
    with pytest.raises(pytest.skip.Exception, match="scores_are_one_finite_number_a_unit fails"):
        test(*cases["sound/zero_channel_ranks_last"].values)


def test_results_say_what_failed_and_what_was_not_run() -> None:
    results = run_checks(registry("initializer", initializers.Crashes).all())
    by_check = {result.check: result for result in results}
    failed = by_check["scores_are_one_finite_number_a_unit"]
    assert (failed.kind, failed.plugin, failed.status) == ("initializer", "sound", "failed")
    assert failed.message == "ZeroDivisionError: division by zero"
    assert by_check["no_hook_is_left_behind"].status == "not run"
    assert by_check["no_hook_is_left_behind"].message == "scores_are_one_finite_number_a_unit fails"
    assert by_check["implementation_is_immutable"].status == "passed"
    assert list(by_check) == [check.name for check in checks_for("initializer")]


@dataclass(frozen=True)
class Quits:
    def groups(self, layout: Any) -> Any:
        sys.exit("nothing to do here")


def test_a_plugin_that_quits_is_a_failed_check() -> None:
    results = {result.check: result for result in run_checks(registry("granularity", Quits).all())}
    assert results["units_divide_the_axes"].status == "failed"
    assert results["units_divide_the_axes"].message == "SystemExit: nothing to do here"


def test_the_kit_leaves_randomness_and_gradient_mode_as_they_were() -> None:
    before = torch.get_rng_state(), random.getstate(), torch.is_grad_enabled()
    for broken in (initializers.SeedsGlobally, initializers.DrawsGlobally, initializers.LeavesGradientModeOff):
        run_checks(registry("initializer", broken).all())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.is_grad_enabled()) == before[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_checks_come_after_those_that_they_build_on(kind) -> None:
    seen: set[str] = set()
    for check in checks_for(kind):
        assert set(check.after) <= seen, check.name
        seen.add(check.name)
    assert seen == {check.name for check in CHECKS if check.kind in ("", kind)}


def test_every_check_has_a_name_of_its_own_and_says_what_it_holds_a_plugin_to() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.summary.endswith("."), check.name


def test_the_kit_imports_pytest_only_in_the_functions_that_make_tests() -> None:
    found = set()
    for path in Path(testing.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        inside = {id(node): f.name for f in tree.body if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name == "pytest" for alias in node.names):
                found.add((path.name, inside.get(id(node))))
    assert found == {("kit.py", "conformance_tests"), ("family.py", "family_tests")}


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_tiny_fresh_and_use_no_global_randomness(family) -> None:
    before = torch.get_rng_state()
    first, second = tiny_model(family), tiny_model(family)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.num_parameters() < 50_000
    first.get_parameter("model.norm.weight").data.zero_()
    assert second.get_parameter("model.norm.weight").abs().min() > 0
    biases = [name for name, _ in first.named_parameters() if name.endswith("bias")]
    assert bool(biases) == (family == "qwen2")


def test_a_tiny_base_is_read_back_as_it_was_written(tmp_path) -> None:
    base = tiny_base(tmp_path)
    assert all(torch.equal(p, base.model.state_dict()[n]) for n, p in tiny_model().state_dict().items())
    assert base.tokenizer("w5 w6")["input_ids"] == tiny_tokenizer()("w5 w6")["input_ids"]
