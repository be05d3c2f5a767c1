"""Plugins are loaded one by one: a broken one is reported with its name and stops nobody else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import pytest

from polyprune_core import Provider, hookimpl
from polyprune_core.errors import BudgetError, PluginError
from polyprune_core.plugins.options import FIRST, describe_options, parse_spec
from polyprune_core.plugins.registry import KINDS, Registered, Registry, Source, load_registry


@dataclass(frozen=True)
class Toy:
    power: int = 2
    mean: bool = False
    rate: float = 0.5
    norm: Literal["l1", "l2"] = "l1"
    top_k: int | None = None

    def run(self, *_: Any) -> Any:
        raise NotImplementedError

    groups = score = sample = gradient = export = load = run


def point(name: str, load: Callable[[], Any], distribution: str = "toys", version: str = "0.1") -> Any:
    """What importlib.metadata gives for one entry point, as far as the registry looks at it."""
    return SimpleNamespace(name=name, load=load, dist=SimpleNamespace(name=distribution, version=version))


def plugin(hook: Callable[[], Any], name: str = "polyprune_initializers") -> ModuleType:
    """A module with one hook."""
    module = ModuleType("toy")
    hook.__name__ = name
    setattr(module, name, hookimpl(hook))
    return module


def yields(*providers: Any, kind: str = "initializer", **where: str) -> Any:
    """An entry point whose module yields the providers."""
    name = getattr(providers[0], "name", "toy")
    return point(where.pop("name", name), lambda: plugin(lambda: iter(providers), KINDS[kind]), **where)


def toy(name: str = "toy", factory: Callable[..., Any] = Toy) -> Provider[Any]:
    return Provider(name, f"a toy called {name}", factory)


GOOD = yields(toy("good"), distribution="good-one")


def fields(made: Any) -> dict[str, tuple[type, Any]]:
    """Returns the options of a built toy with their types."""
    return {field.name: (type(value := getattr(made, field.name)), value) for field in dataclasses.fields(Toy)}


def names(registry: Registry) -> list[str]:
    return [item.provider.name for item in registry.all()]


def broken(load: Callable[[], Any]) -> tuple[Registry, str]:
    """Loads a broken plugin beside a good one; returns the registry and the only problem as text."""
    registry = load_registry([point("bad", load, "bad-one", "3.2"), GOOD])
    assert names(registry) == ["good"]
    assert len(registry.problems) == 1
    text = str(registry.problems[0])
    assert "bad (bad-one 3.2): " in text
    assert len(text.splitlines()) == 1
    return registry, text


def test_a_plugin_is_found_by_kind_and_name_with_its_source() -> None:
    registry = load_registry([yields(toy(), distribution="toys", version="0.4")])
    item = registry.get("initializer", "toy")
    assert (item.kind, item.provider.summary, str(item.source)) == ("initializer", "a toy called toy", "toys 0.4")
    assert registry.problems == ()
    assert fields(registry.build("initializer", "toy")) == fields(Toy())


def test_one_module_may_provide_several_kinds_and_a_hook_may_return_a_list() -> None:
    module = plugin(lambda: [toy("one"), toy("two")])
    module.polyprune_exporters = hookimpl(lambda: [toy("three")])
    registry = load_registry([point("both", lambda: module)])
    assert [(item.kind, item.provider.name) for item in registry.all()] == [
        ("initializer", "one"),
        ("initializer", "two"),
        ("exporter", "three"),
    ]
    assert [item.provider.name for item in registry.all("initializer")] == ["one", "two"]


def test_providers_are_listed_by_kind_and_name_whatever_the_order_of_installation() -> None:
    points = [yields(toy(name), kind=kind) for kind in reversed(KINDS) for name in ("b", "a")]
    expected = [(kind, name) for kind in KINDS for name in ("a", "b")]
    for order in (points, points[::-1]):
        assert [(item.kind, item.provider.name) for item in load_registry(order).all()] == expected


def test_the_installed_plugins_load_without_a_problem() -> None:
    registry = load_registry()
    assert [str(problem) for problem in registry.problems if problem.source.distribution == "polyprune"] == []
    assert len([item for item in registry.all() if item.source.distribution == "polyprune"]) >= 15


def test_an_entry_point_without_a_distribution_loads_too() -> None:
    lone = yields(toy())
    lone.dist = None
    assert names(load_registry([lone])) == ["toy"]


@pytest.mark.parametrize(
    "error",
    [ImportError("cannot import name 'x'"), ModuleNotFoundError("No module named 'scipy'"), SyntaxError("bad")],
    ids=lambda error: type(error).__name__,
)
def test_a_module_that_cannot_be_imported_is_named_with_its_reason(error: Exception) -> None:
    def load() -> Any:
        raise error

    _, text = broken(load)
    assert f"{type(error).__name__}: {error}" in text


def test_a_missing_dependency_is_named_where_its_plugin_is_asked_for() -> None:
    def load() -> Any:
        raise ModuleNotFoundError("No module named 'scipyy'")

    registry, _ = broken(load)
    with pytest.raises(PluginError) as failure:
        registry.get("initializer", "bad")
    assert "no initializer named 'bad'" in str(failure.value)
    assert "bad-one 3.2" in str(failure.value)
    assert "No module named 'scipyy'" in str(failure.value)


def test_a_reason_of_many_lines_is_told_on_one() -> None:
    def load() -> Any:
        raise RuntimeError("first\nsecond")

    _, text = broken(load)
    assert text.endswith("RuntimeError: first second")


def test_a_mistyped_hook_is_named() -> None:
    _, text = broken(lambda: plugin(lambda: [toy()], "polyprune_initialisers"))
    assert "polyprune_initialisers" in text


def test_a_hook_with_an_argument_that_there_is_not_is_refused() -> None:
    _, text = broken(lambda: plugin(lambda registry: [toy()]))
    assert "PluginValidationError" in text
    assert "polyprune_initializers" in text


def test_a_hook_with_an_argument_that_there_is_not_is_told_which() -> None:
    _, text = broken(lambda: plugin(lambda registry: [toy()]))
    assert "{'registry'}" in text


def test_a_hook_that_raises_is_named() -> None:
    def hook() -> Any:
        raise ValueError("no GPU")

    _, text = broken(lambda: plugin(hook))
    assert "polyprune_initializers: ValueError: no GPU" in text


def test_a_generator_that_raises_while_it_is_read_is_named() -> None:
    def hook() -> Iterator[Provider[Any]]:
        yield toy("first")
        raise ValueError("no second")

    _, text = broken(lambda: plugin(hook))
    assert "polyprune_initializers: ValueError: no second" in text


@pytest.mark.parametrize("returned", [None, 3, toy()], ids=["nothing", "a number", "a lone provider"])
def test_a_hook_that_returns_nothing_to_go_through_is_named(returned: Any) -> None:
    _, text = broken(lambda: plugin(lambda: returned))
    assert "polyprune_initializers: TypeError" in text


def test_something_else_than_a_provider_is_named() -> None:
    _, text = broken(lambda: plugin(lambda: [Toy]))
    assert "yields a type where a Provider is needed" in text


@pytest.mark.parametrize("name", ["Wanda", "my_metric", "a b", "", "-a", "a--b", "é", "a:b", "a,b", "a+b"])
def test_a_name_that_cannot_be_typed_is_refused(name: str) -> None:
    _, text = broken(lambda: plugin(lambda: [toy(name)]))
    assert repr(name) in text


def test_a_factory_that_cannot_be_called_is_refused() -> None:
    _, text = broken(lambda: plugin(lambda: [toy(factory=3)]))
    assert "'toy'" in text


def test_the_good_providers_of_a_plugin_stay_beside_a_bad_one() -> None:
    registry = load_registry([point("mixed", lambda: plugin(lambda: [toy("fine"), "not this", toy("also-fine")]))])
    assert names(registry) == ["also-fine", "fine"]
    assert len(registry.problems) == 1


def test_a_hook_that_raises_leaves_the_other_hooks_of_its_module() -> None:
    def hook() -> Any:
        raise ValueError("no")

    module = plugin(hook)
    module.polyprune_exporters = hookimpl(lambda: [toy("writer")])
    registry = load_registry([point("mixed", lambda: module)])
    assert names(registry) == ["writer"]
    assert len(registry.problems) == 1


def test_a_name_that_two_distributions_provide_is_refused_and_both_are_named() -> None:
    points = [yields(toy(), distribution=name, version=version) for name, version in (("ours", "1"), ("theirs", "2"))]
    for order in (points, points[::-1]):
        registry = load_registry([*order, GOOD])
        assert names(registry) == ["good"]
        assert len(registry.problems) == 1
        text = str(registry.problems[0])
        assert "initializer 'toy'" in text
        assert "ours 1" in text
        assert "theirs 2" in text
        with pytest.raises(PluginError) as failure:
            registry.get("initializer", "toy")
        assert "ours 1" in str(failure.value)
        assert "theirs 2" in str(failure.value)


def test_two_kinds_may_share_a_name() -> None:
    registry = load_registry([yields(toy()), yields(toy(), kind="exporter", distribution="others")])
    assert names(registry) == ["toy", "toy"]
    assert registry.problems == ()


def test_strict_mode_stops_at_any_problem_and_lists_them_all(monkeypatch) -> None:
    def load() -> Any:
        raise ImportError("no")

    points = [GOOD, point("bad", load), point("worse", load)]
    monkeypatch.setenv("POLYPRUNE_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError) as failure:
        load_registry(points)
    assert "bad (toys 0.1)" in str(failure.value)
    assert "worse (toys 0.1)" in str(failure.value)
    assert names(load_registry([GOOD])) == ["good"]
    monkeypatch.setenv("POLYPRUNE_STRICT_PLUGINS", "0")
    assert len(load_registry(points).problems) == 2


def test_an_unknown_name_gets_the_nearest_one_and_all_of_its_kind() -> None:
    registry = load_registry([yields(toy("wanda"), toy("random")), yields(toy("wand"), kind="exporter")])
    with pytest.raises(PluginError) as failure:
        registry.get("initializer", "wandaa")
    assert str(failure.value) == ("no initializer named 'wandaa'. Did you mean 'wanda'? Available: random, wanda.")


def test_of_no_plugins_none_is_available() -> None:
    with pytest.raises(PluginError, match=r"Available: none\.$"):
        Registry([], []).get("estimator", "rloo")


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("wanda", "wanda", {}),
        (" LLM_Pruner ", "llm-pruner", {}),
        ("toy:power=3", "toy", {"power": "3"}),
        ("toy: top-k = 4 :mean=true", "toy", {"top_k": "4", "mean": "true"}),
        ("toy:path=a=b", "toy", {"path": "a=b"}),
        ("toy:3:mean=true", "toy", {FIRST: "3", "mean": "true"}),
    ],
)
def test_a_spec_is_a_name_and_its_options(spec: str, name: str, options: dict[str, str]) -> None:
    assert parse_spec(spec) == (name, options)


@pytest.mark.parametrize("spec", ["toy:power=3:4", "toy:power=", "toy:=3", "toy:", "toy:power=3:", "toy::power=3"])
def test_a_spec_whose_options_are_no_pairs_is_refused(spec: str) -> None:
    with pytest.raises(PluginError, match="option=value"):
        parse_spec(spec)


@pytest.fixture
def registry() -> Registry:
    return Registry([Registered("initializer", toy(), Source("toys", "0.1"))], [])


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ("power=3", Toy(power=3)),
        ("mean=true", Toy(mean=True)),
        ("mean=no", Toy(mean=False)),
        ("rate=1e-3", Toy(rate=0.001)),
        ("norm=l2", Toy(norm="l2")),
        ("top-k=5", Toy(top_k=5)),
        ("TOP_K=5", None),
        ("power=3:norm=l2:rate=2", Toy(power=3, norm="l2", rate=2.0)),
    ],
)
def test_options_get_the_types_that_the_factory_declares(registry: Registry, options: str, made: Toy | None) -> None:
    if made is None:
        with pytest.raises(PluginError, match="no option named"):
            registry.build("initializer", f"toy:{options}")
        return
    assert fields(registry.build("initializer", f"toy:{options}")) == fields(made)


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        ("powr=3", ["no option named 'powr'", "Did you mean 'power'?", "mean, norm, power, rate, top_k"]),
        ("power=three", ["option power='three'", "integer"]),
        ("power=2.5", ["option power='2.5'", "integer"]),
        ("mean=perhaps", ["option mean='perhaps'", "boolean"]),
        ("norm=l3", ["option norm='l3'", "'l1' or 'l2'"]),
    ],
)
def test_an_option_that_cannot_be_used_is_one_line_that_says_why(registry, option: str, parts: list[str]) -> None:
    with pytest.raises(PluginError) as failure:
        registry.build("initializer", f"toy:{option}")
    text = str(failure.value)
    assert text.startswith("initializer 'toy': ")
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text


def test_options_are_described_with_their_types_and_defaults() -> None:
    assert describe_options(toy()) == {
        "power": "int = 2",
        "mean": "bool = False",
        "rate": "float = 0.5",
        "norm": "Literal['l1', 'l2'] = 'l1'",
        "top_k": "int | None = None",
    }


@dataclass(frozen=True)
class Faulty:
    """Raises whatever it is made with from its methods."""

    error: Any = None
    min_masks: int = 3

    def sample(self, *_: Any) -> Any:
        raise self.error

    gradient = sample

    def groups(self, *_: Any) -> Iterator[Any]:
        yield from ()
        raise self.error


def of_toys(provider: Provider[Any], kind: str = "estimator") -> Registry:
    return Registry([Registered(kind, provider, Source("toys", "0.1"))], [])


def test_what_a_plugin_raises_is_told_on_one_line_with_its_name_and_distribution() -> None:
    error = ZeroDivisionError("what went wrong\nand more of it")
    made = of_toys(toy(factory=lambda: Faulty(error))).build("estimator", "toy")
    with pytest.raises(PluginError) as failure:
        made.sample("anything")
    assert failure.value.__cause__ is error
    text = str(failure.value)
    assert len(text.splitlines()) == 1
    for part in ("estimator 'toy'", "toys 0.1", "ZeroDivisionError: what went wrong"):
        assert part in text


@pytest.mark.parametrize("error", [BudgetError("too sparse"), PluginError("mine"), KeyboardInterrupt(), MemoryError()])
def test_user_errors_interrupts_and_lack_of_memory_pass_as_they_are(error: BaseException) -> None:
    made = of_toys(toy(factory=lambda: Faulty(error))).build("estimator", "toy")
    with pytest.raises(type(error)) as failure:
        made.sample("anything")
    assert failure.value is error


def test_attributes_of_a_plugin_are_read_as_they_are() -> None:
    assert of_toys(toy(factory=Faulty)).build("estimator", "toy").min_masks == 3


def test_a_method_that_raises_while_it_is_read_is_told_too() -> None:
    made = of_toys(toy(factory=lambda: Faulty(ZeroDivisionError("no"))), "granularity").build("granularity", "toy")
    with pytest.raises(PluginError, match=r"toys 0\.1"):
        list(made.groups("anything"))


def test_a_plugin_without_its_method_is_told_with_its_name_and_distribution() -> None:
    with pytest.raises(PluginError, match=r"initializer 'toy' of toys 0\.1 has no 'score'"):
        of_toys(toy(factory=Faulty), "initializer").build("initializer", "toy")


def refuse(power: int = 2) -> Any:
    raise RuntimeError(f"power {power} on this machine")


@pytest.mark.parametrize("spec", ["toy", "toy:power=3"])
def test_a_factory_that_raises_is_told_with_its_name_and_reason(spec: str) -> None:
    with pytest.raises(PluginError) as failure:
        of_toys(toy(factory=refuse)).build("estimator", spec)
    assert "'toy'" in str(failure.value)
    assert "on this machine" in str(failure.value)
