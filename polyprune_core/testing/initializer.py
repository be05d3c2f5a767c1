"""What an initializer owes: one finite score a unit, from the model and the text alone, and a model left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.plugins.registry import Registered
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.testing.checking import (
    NotRun,
    check,
    for_each_plugin,
    global_randomness_unused,
    made,
    require,
    require_close,
    world_restored,
)
from polyprune_core.testing.tiny import FAMILIES, tiny_calibration, tiny_model, tiny_space, tiny_windows
from polyprune_core.testing.untouched import Snapshot, Stop, stopped_in

# What a metric may be made for; one that refuses a choice with ConfigError or PluginError is checked on the others.
CHOICES = ("head+channel", "channel", "head", "attention+mlp", "layer")
SCORES, USES_NO_RANDOMNESS = "scores_are_one_finite_number_a_unit", "scoring_uses_no_global_randomness"
REPEATS = "same_calibration_gives_the_same_scores"
UNCHANGED = ("weights_are_left_alone", "no_hook_is_left_behind", "flags_and_attributes_are_left_alone")
SUMMATION = 1e-5  # float32 sums taken in another order, relative to the largest score


def _score(
    plugin: Registered, model: nn.Module, units: str | None = None, calibration: Calibration | None = None
) -> Tensor:
    """Returns (U,) scores of a model's units."""
    space = tiny_space(model, units or _first(plugin))
    scores: Any = made(plugin).score(model, space, calibration or _calibration(plugin, model))
    ours: Tensor = scores.detach().clone() if isinstance(scores, Tensor) else scores
    return ours


def _calibration(plugin: Registered, model: nn.Module, **how: Any) -> Calibration:
    """Returns calibration with all that the plugin says it needs, and no budget unless it says so."""
    needs = plugin.provider.needs
    budget = SelectionRule(0.3) if "budget" in needs else None
    return tiny_calibration(model, budget=budget, held_back="held-back" in needs, **how)


def _accepted(plugin: Registered) -> Iterator[tuple[str, Tensor]]:
    """Yields the units that it accepts, with its scores of those of the tiny model."""
    refusals = []
    for units in CHOICES:
        try:
            with world_restored():
                scores = _score(plugin, tiny_model(), units)
        except (ConfigError, PluginError) as error:
            refusals.append(f"{units}: {error}")
        else:
            yield units, scores
    require(len(refusals) < len(CHOICES), f"it scores units of no kind: {'; '.join(refusals)}")


@for_each_plugin
def _first(plugin: Registered) -> str:
    return next(_accepted(plugin))[0]


@for_each_plugin
def _with_channels(plugin: Registered) -> str:
    for units, _ in _accepted(plugin):
        if "channel" in units:
            return units
    raise NotRun("it does not score channels")


def _channels(model: nn.Module, units: str, layer: int) -> slice:
    space = tiny_space(model, units)
    wanted = [group.kind == "channel" and group.layer == layer for group in space.groups]
    return space.slices()[wanted.index(True)]


def _edit_channels(model: nn.Module, layer: int, change: Callable[[Tensor], Tensor]) -> None:
    """Replaces the weights of an MLP; `change` gets them with one row a channel."""
    mlp: Any = model.get_submodule(f"model.layers.{layer}.mlp")
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight.data = change(linear.weight.data)
    mlp.down_proj.weight.data = change(mlp.down_proj.weight.data.t()).t().contiguous()


def _mixed_model() -> nn.Module:
    """Returns a model that is partly in training mode and partly trainable, as a caller may have left it."""
    model: nn.Module = tiny_model("qwen2")
    model.get_submodule("model.layers.1").train().requires_grad_(True)
    return model


@for_each_plugin
def _expected(plugin: Registered) -> Tensor:
    """Returns its scores of the tiny model, which several checks compare with."""
    return _score(plugin, tiny_model())


@check("initializer", "builds_with_its_defaults")
def scores_are_one_finite_number_a_unit(plugin: Registered) -> None:
    """Scores are (U,) finite floating-point numbers, for every choice of units that it accepts."""
    for units, first in _accepted(plugin):
        models = {family: tiny_model(family) for family in FAMILIES} | {"a partly trainable qwen2": _mixed_model()}
        for name, model in models.items():
            scores = first if name == FAMILIES[0] else _score(plugin, model, units)
            what = f"{units} of {name}"
            require(isinstance(scores, Tensor), f"{what}: a {type(scores).__name__} is no tensor")
            expected = (len(tiny_space(model, units)),)
            require(tuple(scores.shape) == expected, f"{what}: the shape is {tuple(scores.shape)}, not {expected}")
            require(scores.is_floating_point(), f"{what}: {scores.dtype} are no floating-point numbers")
            wrong = int((~scores.isfinite()).sum())
            require(not wrong, f"{what}: {wrong} of {len(scores)} scores are not finite")


@check("initializer", SCORES)
def needs_are_declared(plugin: Registered) -> None:
    """A metric that reads text declares `calibration`, one that back-propagates through it `gradients`."""
    model = tiny_model()
    calibration = _calibration(plugin, model)
    _score(plugin, model, calibration=calibration)
    for need, passes in (("calibration", calibration.forward_passes), ("gradients", calibration.backward_passes)):
        require(need in plugin.provider.needs or not passes, f"it made {passes} passes; add {need!r} to its needs")


@check("initializer", SCORES, "building_uses_no_global_randomness")
def scoring_uses_no_global_randomness(plugin: Registered) -> None:
    """Scoring neither draws from nor seeds a generator that others share: there is `calibration.rng`."""
    model = tiny_model()
    units = _first(plugin)
    with global_randomness_unused():
        _score(plugin, model, units)


@check("initializer", SCORES, USES_NO_RANDOMNESS)
def same_calibration_gives_the_same_scores(plugin: Registered) -> None:
    """The same model, text and seed give the same bits."""
    require(torch.equal(_score(plugin, tiny_model()), _score(plugin, tiny_model())), "two runs gave different scores")


@check("initializer", SCORES, REPEATS, excusable=True)
def permuted_channels_have_permuted_scores(plugin: Registered) -> None:
    """The order of channels in an MLP, which the model does not depend on, only orders the scores."""
    units, model, permuted = _with_channels(plugin), tiny_model(), tiny_model()
    where = _channels(model, units, layer=1)
    order = torch.arange(where.stop - where.start).flip(0).roll(3)
    _edit_channels(permuted, 1, lambda rows: rows[order])
    expected = _score(plugin, model, units)
    expected[where] = expected[where][order]
    found = _score(plugin, permuted, units)
    require_close(found, expected, SUMMATION, "scores of a model with permuted channels")


@check("initializer", SCORES, REPEATS, excusable=True)
def batch_size_does_not_matter(plugin: Registered) -> None:
    """The same text in other batches gives the same scores, within rounding; the last batch is a smaller one."""
    expected = _expected(plugin)
    for batch_size in (1, 2):
        model = tiny_model()
        found = _score(plugin, model, calibration=_calibration(plugin, model, batch_size=batch_size))
        require_close(found, expected, SUMMATION, f"scores with batches of {batch_size} windows and of all 5")


@check("initializer", SCORES, REPEATS, excusable=True)
def order_of_the_text_does_not_matter(plugin: Registered) -> None:
    """The same windows the other way round give the same scores, within rounding."""
    model = tiny_model()
    found = _score(plugin, model, calibration=_calibration(plugin, model, windows=tiny_windows().flip(0)))
    require_close(found, _expected(plugin), SUMMATION, "scores with the windows the other way round")


@check("initializer", SCORES, REPEATS, excusable=True)
def zero_channel_ranks_last(plugin: Registered) -> None:
    """A channel whose weights are all zero scores lower than every other channel of its layer."""
    model, units, dead = tiny_model(), _with_channels(plugin), 33
    _edit_channels(model, 2, lambda rows: rows.index_fill(0, torch.tensor([dead]), 0))
    scores = _score(plugin, model, units)[_channels(model, units, layer=2)]
    lower = int((scores <= scores[dead]).sum()) - 1
    require(not lower, f"{lower} of {len(scores) - 1} other channels score as low as one of zero weights, or lower")


@check("initializer", SCORES)
def weights_are_left_alone(plugin: Registered) -> None:
    """Scoring changes no weight and no buffer."""
    _scored(plugin).require_weights()


@check("initializer", SCORES)
def no_hook_is_left_behind(plugin: Registered) -> None:
    """Scoring removes every hook that it registers."""
    _scored(plugin).require_hooks()


@check("initializer", SCORES)
def flags_and_attributes_are_left_alone(plugin: Registered) -> None:
    """Training flags, requires_grad, grad, attributes of modules, configuration and gradient mode are as before."""
    _scored(plugin).require_flags()


def _scored(plugin: Registered) -> Snapshot:
    """Returns a snapshot from before of a model that has been scored."""
    units, model = _first(plugin), _mixed_model()
    before = Snapshot(model)
    _score(plugin, model, units)
    return before


@check("initializer", SCORES, *UNCHANGED)
def interruption_leaves_the_model_as_it_was(plugin: Registered) -> None:
    """Stopped inside the model, it leaves weights, hooks and flags as they were."""
    units, model = _first(plugin), _mixed_model()
    with stopped_in(model, "model.layers.2.mlp"):
        before = Snapshot(model)
        with contextlib.suppress(Stop, Exception):  # whatever it makes of the interruption
            _score(plugin, model, units)
        before.require_as_it_was()
