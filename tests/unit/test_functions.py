"""A metric as a plain function: what it is given, what it may return, how it is registered."""

from __future__ import annotations

import pickle
import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from polyprune_core import initializer
from polyprune_core.errors import PluginError
from polyprune_core.plugins.decorator import provider_of
from polyprune_core.plugins.options import describe_options
from polyprune_core.plugins.registry import Registered, Registry, Source, load_registry
from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space

FAMILIES = ("llama", "qwen2")
UNITS = ("head+channel", "layer")
everywhere = pytest.mark.parametrize("units", UNITS)
families = pytest.mark.parametrize("family", FAMILIES)


@initializer("size", reference="a made-up paper")
def size(weight: Tensor, power: float = 2.0, sign: Literal["up", "down"] = "up", untyped=3) -> Tensor:
    """Size of the weights.

    More about it.
    """
    return weight.abs() ** power * (1 if sign == "up" else -1)


def registry_of(*functions: Any) -> Registry:
    source = Source("an-author", "1.0")
    return Registry([Registered("initializer", provider_of(f), source) for f in functions], [])


def scores(function: Any, family: str = "llama", units: str = "head+channel", spec: str = "") -> Tensor:
    model = tiny_model(family)
    registry = registry_of(function)
    metric = registry.build("initializer", spec or registry.all()[0].provider.name)
    return metric.score(model, tiny_space(model, units), tiny_calibration(model))


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    assert size(torch.tensor([-3.0])).tolist() == [9.0]
    assert size.__name__ == "size"


def test_the_first_line_of_the_docstring_is_the_summary() -> None:
    provider = provider_of(size)
    assert (provider.name, provider.summary, provider.reference) == ("size", "Size of the weights.", "a made-up paper")


def test_parameters_with_defaults_are_options_typed_by_annotation_or_default() -> None:
    assert describe_options(provider_of(size)) == {
        "power": "float = 2.0",
        "sign": "Literal['up', 'down'] = 'up'",
        "untyped": "int = 3",
    }


@families
@everywhere
def test_a_score_is_the_sum_over_all_entries_that_a_unit_owns(family, units) -> None:
    model = tiny_model(family)
    space = tiny_space(model, units)
    expected = space.sum_weights(lambda name: model.get_parameter(name).abs() ** 3)
    assert torch.equal(scores(size, family, units, "size:power=3"), expected)
    assert torch.equal(scores(size, family, units, "size:power=3:sign=down"), -expected)


@families
@everywhere
def test_of_readers_only_their_columns_are_summed(family, units) -> None:
    @initializer("reader-size", matrices="readers")
    def reader_size(weight: Tensor) -> Tensor:
        assert weight.dim() == 2
        return weight.abs()

    model = tiny_model(family)
    expected = tiny_space(model, units).sum_columns(model, lambda axis, weight: weight.abs().sum(dim=0))
    torch.testing.assert_close(scores(reader_size, family, units), expected)


@families
def test_the_input_norm_is_the_root_mean_square_of_each_input_and_one_for_a_bias(family) -> None:
    @initializer("contribution")
    def contribution(weight: Tensor, input_norm: Tensor) -> Tensor:
        return weight.abs() * input_norm

    model, inputs = tiny_model(family), {}
    for name, linear in model.named_modules():
        if isinstance(linear, torch.nn.Linear):
            linear.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0].flatten(0, -2)}))
    model(input_ids=tiny_calibration(model).windows)

    def by_hand(parameter: str) -> Tensor:
        weight = model.get_parameter(parameter).abs()
        return weight * inputs[parameter.rpartition(".")[0]].square().mean(dim=0).sqrt() if weight.dim() > 1 else weight

    torch.testing.assert_close(scores(contribution, family), tiny_space(model).sum_weights(by_hand))


@families
def test_the_gradient_is_that_of_the_mean_loss(family) -> None:
    @initializer("taylor")
    def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs()

    model = tiny_model(family)
    space, calibration = tiny_space(model), tiny_calibration(model)
    mean, _ = calibration.gradients()
    expected = space.sum_weights(lambda name: (model.get_parameter(name) * mean[name]).abs())
    torch.testing.assert_close(scores(taylor, family), expected)


@pytest.mark.parametrize(
    ("asked", "needs", "passes"),
    [
        (("weight",), set(), (0, 0)),
        (("input_norm", "weight"), {"calibration"}, (1, 0)),
        (("gradient",), {"calibration", "gradients"}, (1, 1)),
        (("weight", "gradient", "input_norm"), {"calibration", "gradients"}, (2, 1)),
    ],
)
def test_only_what_a_function_asks_for_is_measured(asked, needs, passes) -> None:
    values = {"weight": "weight", "input_norm": "0 * input_norm", "gradient": "gradient"}
    shape = "weight" if "weight" in asked else "gradient"
    space: dict[str, Any] = {}
    exec(f"def f({', '.join(asked)}): return {shape} + {' + '.join(values[name] for name in asked)}", space)
    metric = initializer("asks", summary="asks")(space["f"])
    model = tiny_model()
    calibration = tiny_calibration(model)
    registry_of(metric).build("initializer", "asks").score(model, tiny_space(model), calibration)
    assert provider_of(metric).needs == needs
    assert (calibration.forward_passes, calibration.backward_passes) == passes


def test_a_function_may_write_to_what_it_is_given() -> None:
    @initializer("in-place")
    def in_place(weight: Tensor) -> Tensor:
        return weight.abs_()

    model = tiny_model()
    expected = tiny_space(model).sum_weights(lambda name: model.get_parameter(name).abs())
    assert torch.equal(scores(in_place), expected)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("weight.sum(dim=0)", "one number for each entry"),
        ("None", "a NoneType"),
        ("weight.tolist()", "a list"),
        ("weight / 0 * 0", "scores that are not finite"),
        ("1 // 0", "ZeroDivisionError"),
    ],
)
def test_what_a_function_returns_wrongly_is_told_with_its_name_and_distribution(body, told) -> None:
    metric = initializer("wrong", summary="x")(eval(f"lambda weight: {body}"))
    with pytest.raises(PluginError) as failure:
        scores(metric)
    assert "initializer 'wrong' of an-author 1.0" in str(failure.value)
    assert told in str(failure.value)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda weight, activations: weight, "'activations' is not one of weight, input_norm, gradient"),
        (lambda *weight: weight, r"'\*weight' has no name"),
        (lambda weight, **rest: weight, r"'\*\*rest' has no name"),
    ],
)
def test_a_parameter_that_is_neither_measured_nor_an_option_is_refused_at_once(function, told) -> None:
    with pytest.raises(TypeError, match=told):
        initializer("wrong")(function)


def test_an_unknown_choice_of_matrices_is_refused() -> None:
    with pytest.raises(TypeError, match="'all' or 'readers' is needed"):
        initializer("wrong", matrices="columns")(lambda weight: weight)  # type: ignore[arg-type]


def test_the_implementation_is_a_value() -> None:
    factory = provider_of(size).factory
    assert factory(power=3.0) == factory(power=3.0) != factory(power=2.0)
    assert pickle.loads(pickle.dumps(factory(power=3.0))) == factory(power=3.0)
    with pytest.raises(TypeError, match="no_such_option"):
        factory(no_such_option=1)


SOURCE = """
from polyprune_core import initializer
from {other} import elsewhere

@initializer("first", summary="one")
def first(weight):
    return weight

@initializer("second", summary="two")
def second(weight, power=1.0):
    return weight ** power

again = first

def helper(weight):
    return weight
"""


@pytest.fixture
def module(monkeypatch) -> str:
    """The name of an importable module with two metrics, and one that it only imports."""
    for name, source in (
        ("other_functions", SOURCE.replace("from {other} import elsewhere", "").replace("first", "elsewhere")),
        ("some_functions", SOURCE.format(other="other_functions")),
    ):
        made = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        exec(source, made.__dict__)
    return "some_functions"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("some_functions", ["first", "second"]),
        ("some_functions:second", ["second"]),
        ("some_functions:again", ["first"]),
        ("some_functions:elsewhere", ["elsewhere"]),
    ],
)
def test_an_entry_point_registers_a_function_or_all_that_a_module_defines(module, value, names) -> None:
    registry = load_registry([EntryPoint("some", value, "polyprune")])
    assert [item.provider.name for item in registry.all("initializer")] == names
    assert registry.problems == ()


def test_an_entry_point_to_an_unregistered_function_is_a_problem(module) -> None:
    registry = load_registry([EntryPoint("some", "some_functions:helper", "polyprune")])
    assert registry.all() == []
    assert "or a function marked with @initializer" in str(registry.problems[0])
