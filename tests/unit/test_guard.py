"""The border between core and plugins: results, the model and shared random numbers, while a plugin runs."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyprune_core import PluginDeprecationWarning, Provider, UnitGroup, deprecated
from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.models.describe import describe
from polyprune_core.plugins.guard import METHODS, Guarded
from polyprune_core.plugins.registry import Registered, Registry, Source
from polyprune_core.plugins.side_effects import WeightsChanged
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Policy
from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space
from polyprune_core.testing.untouched import Snapshot

WHO = {kind: f"{kind} 'toy' of an-author 1.0" for kind in METHODS}


@dataclass(frozen=True)
class Toy:
    """Does `act` with whatever it is called with, in place of every method."""

    act: Callable[..., Any]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self.act(*args, **kwargs)

    groups = score = sample = gradient = export = load = run


def guarded(kind: str, act: Callable[..., Any] | None = None, factory: Callable[..., Any] | None = None) -> Any:
    provider: Provider[Any] = Provider("toy", "a toy", factory or (lambda: Toy(act)))
    return Registry([Registered(kind, provider, Source("an-author", "1.0"))], []).build(kind, "toy")


def scored(act: Callable[[nn.Module], Any], model: nn.Module | None = None) -> Tensor:
    """Scores the units of a tiny model after `act` has done something to it."""
    model = model or tiny_model()
    space = tiny_space(model)

    def score(*_: Any) -> Tensor:
        act(model)
        return torch.ones(len(space))

    return guarded("initializer", score).score(model, space, tiny_calibration(model))


def refused(*parts: str) -> Any:
    return pytest.raises(PluginError, match=".*".join(parts))


SCORES = {
    "a list": (lambda n: [0.0] * n, "a list"),
    "nothing": (lambda n: None, "a NoneType"),
    "too few": (lambda n: torch.zeros(3), r"shape \(3,\)"),
    "a matrix": (lambda n: torch.zeros(1, n), r"shape \(1, "),
    "whole numbers": (lambda n: torch.arange(n), "int64"),
    "truth values": (lambda n: torch.ones(n, dtype=torch.bool), "bool"),
    "complex numbers": (lambda n: torch.ones(n, dtype=torch.complex64), "complex64"),
    "not a number": (lambda n: torch.full((n,), float("nan")), "scores that are not finite"),
    "infinite as float32": (lambda n: torch.full((n,), 1e300, dtype=torch.float64), "as float32, .* not finite"),
    "infinite": (lambda n: torch.full((n,), float("inf")), "scores that are not finite"),
}


@pytest.mark.parametrize("fault", SCORES)
def test_scores_that_are_no_scores_are_refused(fault) -> None:
    make, told = SCORES[fault]
    model = tiny_model()
    space = tiny_space(model)
    with refused(WHO["initializer"], told, f"each of {len(space)} units"):
        guarded("initializer", lambda *_: make(len(space))).score(model, space, tiny_calibration(model))


LAYOUT = describe(tiny_model())
CHANNELS = [UnitGroup("c", axis.layer, axis.size, ((axis.name, 1),)) for axis in LAYOUT.of_kind("mlp")]
GROUPS = {
    "nothing to go through": (None, "a NoneType"),
    "text": ("channels", "a str"),
    "something else": ([*CHANNELS, ("c", 3)], "a tuple where a UnitGroup"),
    "an axis that there is not": ([UnitGroup("c", 0, 4, (("layers.0.experts", 1),))], "layers.0.experts"),
    "entries left over": ([UnitGroup("c", 0, 69, (("layers.0.mlp", 1),))], "70 are needed"),
    "units that own nothing": ([*CHANNELS, UnitGroup("free", 0, 3, ())], "own nothing and cost nothing"),
    "no unit": ([*CHANNELS, UnitGroup("none", 0, 0, ())], "0 units"),
    "another layer": ([UnitGroup("c", 1, 70, (("layers.0.mlp", 1),))], r"layer 1 that owns axes of layers \[0\]"),
    "a layer twice": ([CHANNELS[0], CHANNELS[0]], "in layer order"),
    "the last layer first": (CHANNELS[::-1], "in layer order"),
    "a word for a number": ([UnitGroup("c", 0, "70", (("layers.0.mlp", 1),))], ""),
}


@pytest.mark.parametrize("fault", GROUPS)
def test_units_that_are_no_units_are_refused(fault) -> None:
    groups, told = GROUPS[fault]
    with refused(WHO["granularity"], told):
        guarded("granularity", lambda layout: groups).groups(LAYOUT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_a_gradient_of_another_number_format_is_refused(dtype) -> None:
    with refused(WHO["estimator"], str(dtype), "torch.float32 is needed"):
        guarded("estimator", lambda *_: (torch.ones(3, dtype=dtype), None)).gradient("anything")


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Policy(torch.full((3,), 0.5, dtype=torch.float64)), "float64; torch.float32 is needed"),
        (Policy([0.5]), "a list; torch.float32"),
        (Policy(torch.tensor([0.5])), r"\(1,\); \(2,\) is needed"),
        (Policy(torch.tensor([0.5, 1.0])), "do not lie between 0 and 1"),
        (Policy(torch.tensor([0.5, float("nan")])), "do not lie between 0 and 1"),
    ],
)
def test_keep_probabilities_that_are_none_are_refused(policy, told) -> None:
    bound = SimpleNamespace(**dict.fromkeys(METHODS["bound policy"], lambda *_: policy))
    given = SimpleNamespace(space=range(2))
    with refused(WHO["bound policy"], told):
        Guarded(bound, "bound policy", WHO["bound policy"], (given,)).policy()


def test_units_may_be_yielded_one_by_one() -> None:
    assert guarded("granularity", lambda layout: iter(CHANNELS)).groups(LAYOUT) == CHANNELS


@pytest.mark.parametrize(("method", "told"), [("export", "an ExportReport"), ("load", "a LoadedModel")])
def test_what_an_exporter_returns_is_checked(method, told) -> None:
    with refused(WHO["exporter"], "a PosixPath", told):
        pruned = SimpleNamespace(base=SimpleNamespace(model=tiny_model()))
        getattr(guarded("exporter", lambda *_: Path("out")), method)(pruned)


def test_a_plugin_that_ends_the_program_fails_like_any_other() -> None:
    def leave(*_: Any) -> Any:
        raise SystemExit(3)

    with refused(WHO["estimator"], "SystemExit: 3"):
        guarded("estimator", leave).sample("anything")


@pytest.mark.parametrize("kind", METHODS)
def test_an_implementation_without_a_method_is_refused_when_it_is_made(kind) -> None:
    with refused(WHO[kind], f"no '{METHODS[kind][0]}'"):
        guarded(kind, factory=object)


def test_a_property_that_raises_is_told_with_its_plugin() -> None:
    class Broken(Toy):
        @property
        def min_masks(self) -> int:
            raise ZeroDivisionError("no masks")

    with refused(WHO["estimator"], "ZeroDivisionError: no masks"):
        _ = guarded("estimator", factory=lambda: Broken(print)).min_masks


def test_control_codes_of_a_user_error_are_taken_out_and_its_type_stays() -> None:
    def refuse(*_: Any) -> Any:
        raise ConfigError("needs \x1b[2J more\nthan \u202e this")

    with pytest.raises(ConfigError, match=r"^needs \[2J more than this$"):
        guarded("estimator", refuse).sample("anything")


def test_what_a_plugin_prints_does_not_reach_stdout(capsys) -> None:
    scored(lambda model: sys.stdout.write("debugging\n"))
    assert capsys.readouterr() == ("", "debugging\n")


DRAWS: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(1),
    "torch seeded": lambda: torch.manual_seed(0),
    "random": random.random,
    "random seeded": lambda: random.seed(0),
    "numpy": lambda: np.random.rand(),
    "numpy seeded": lambda: np.random.seed(0),
}


def states() -> Any:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


@pytest.mark.parametrize("kind", ["granularity", "initializer", "estimator"])
@pytest.mark.parametrize("draw", DRAWS)
def test_drawing_from_a_shared_generator_is_refused_and_undone(kind, draw) -> None:
    before = states()
    with refused(WHO[kind], f"generator of {draw.split()[0]}"):
        if kind == "initializer":
            scored(lambda model: DRAWS[draw]())
        else:
            guarded(kind, lambda *_: (DRAWS[draw](), CHANNELS)[1]).__getattr__(METHODS[kind][0])(LAYOUT)
    assert states() == before


def leave_hook(model: nn.Module) -> None:
    model.get_submodule("model.layers.1").register_forward_pre_hook(lambda module, inputs: None)


def leave_parameter_hook(model: nn.Module) -> None:
    model.requires_grad_(True)
    next(model.parameters()).register_hook(lambda gradient: gradient)
    model.requires_grad_(False)


LEFT = {
    "a hook": (leave_hook, "hooks", "model.layers.1"),
    "a hook on a gradient": (leave_parameter_hook, "hooks", "embed_tokens"),
    "training mode": (lambda model: model.train(), "the training mode"),
    "gradients": (lambda model: model.requires_grad_(True), "requires_grad"),
    "gradient mode": (lambda model: torch.set_grad_enabled(False), "the gradient mode"),
}


@pytest.mark.parametrize("what", LEFT)
def test_what_is_left_on_the_model_is_taken_off_and_told(what) -> None:
    act, *told = LEFT[what]
    model = tiny_model()
    before = Snapshot(model)
    with refused(WHO["initializer"], *told):
        scored(act, model)
    before.require_hooks()
    before.require_flags()


def test_hooks_that_were_there_stay() -> None:
    model, calls = tiny_model(), []
    model.get_submodule("model.layers.1").register_forward_hook(lambda *_: calls.append(1))
    with refused("hooks"):
        scored(leave_hook, model)
    model(input_ids=torch.tensor([[1, 2]]))
    assert calls == [1]


def test_a_model_that_is_added_to_or_taken_from_is_a_fault_like_any_other() -> None:
    def add(model: nn.Module) -> None:
        model.added = nn.Linear(2, 2)
        model.added.register_forward_hook(lambda *_: None)

    def take(model: nn.Module) -> None:
        del model.get_submodule("model.layers.0.mlp").up_proj

    for act in (add, take):
        with refused(WHO["initializer"]):
            scored(act)


@torch.no_grad()
def swap_rows(model: nn.Module) -> None:
    weight = model.get_parameter("model.layers.2.mlp.up_proj.weight")
    weight.copy_(weight.flip(0))


@torch.no_grad()
def swap_columns(model: nn.Module) -> None:
    weight = model.get_parameter("model.layers.0.mlp.down_proj.weight")
    weight.copy_(weight.flip(1))


@torch.no_grad()
def turn_one_sign(model: nn.Module) -> None:
    model.get_parameter("model.layers.1.self_attn.o_proj.weight")[3, 5] *= -1


@torch.no_grad()
def last_bias(model: nn.Module) -> None:
    model.get_parameter("model.layers.2.self_attn.v_proj.bias")[-1] += 1


@pytest.mark.parametrize("act", [swap_rows, swap_columns, turn_one_sign, last_bias])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compact", [False, True])
def test_a_change_of_one_weight_or_of_their_order_is_noticed(act, dtype, compact) -> None:
    model = tiny_model("qwen2").to(dtype)
    with Compactor(model, describe(model)) if compact else torch.no_grad():
        scored(lambda model: None, model)
        with pytest.raises(WeightsChanged, match=r"initializer 'toy' of an-author 1\.0 changed 1 weight of the model"):
            scored(act, model)


def test_a_change_is_noticed_where_the_plugin_raises_besides() -> None:
    def change_and_raise(model: nn.Module) -> None:
        swap_rows(model)
        leave_hook(model)
        raise ZeroDivisionError("after all that")

    model = tiny_model()
    before = Snapshot(model)
    with pytest.raises(WeightsChanged) as failure:
        scored(change_and_raise, model)
    assert "after all that" in str(failure.value.__cause__)
    before.require_hooks()


@deprecated(since="0.2", removed_in="0.4", use="new_sum")
def old_sum(values: list[int], *, start: int = 0) -> int:
    """Adds up."""
    return sum(values, start)


def test_a_deprecated_function_works_and_warns_with_its_plugin_and_its_replacement() -> None:
    with pytest.warns(PluginDeprecationWarning) as told:
        assert guarded("estimator", lambda *_: old_sum([1, 2], start=3)).sample("anything") == 6
    (warning,) = told
    assert str(warning.message) == (
        "old_sum, used by estimator 'toy' of an-author 1.0, is deprecated since 0.2 and will be removed in 0.4; "
        "use new_sum instead."
    )
    assert warning.filename == __file__
    assert issubclass(PluginDeprecationWarning, DeprecationWarning)
    assert (old_sum.__name__, old_sum.__doc__) == ("old_sum", "Adds up.")


def test_a_deprecated_function_that_no_plugin_calls_names_none() -> None:
    with pytest.warns(PluginDeprecationWarning, match="^old_sum is deprecated since 0.2"):
        old_sum([])


def test_a_plugin_can_withdraw_one_of_its_own() -> None:
    factory = deprecated(since="0.2", removed_in="0.4", use="'newer'")(lambda act=1: Toy(print))
    with pytest.warns(PluginDeprecationWarning, match="used by estimator 'toy' of an-author 1.0"):
        guarded("estimator", factory=factory)


def test_nothing_is_told_of_functions_that_stay() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scored(lambda model: None)
