"""Initializers with one fault each; without it, all of them would be the size of the weights, or that of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core import Calibration, MaskSpace
from polyprune_core.errors import PluginError


def magnitude(model: nn.Module, space: MaskSpace) -> Tensor:
    return space.sum_weights(lambda name: model.get_parameter(name).detach().square())


@dataclass(frozen=True)
class NaNScore:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        scores = magnitude(model, space)
        scores[-1] = float("nan")
        return scores


@dataclass(frozen=True)
class WrongShape:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space)[None]


@dataclass(frozen=True)
class WholeNumbers:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space).argsort().argsort()


@dataclass(frozen=True)
class AList:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Any:
        return magnitude(model, space).tolist()


@dataclass(frozen=True)
class Crashes:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        raise ZeroDivisionError("division by zero")


@dataclass(frozen=True)
class RefusesAll:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        raise PluginError("it scores experts only")


@dataclass(frozen=True)
class LeakingHook:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        model.get_submodule("model.layers.1").register_forward_hook(lambda module, inputs, output: None)
        return magnitude(model, space)


@dataclass(frozen=True)
class LeakingGradientHook:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: None)
        return magnitude(model, space)


@dataclass(frozen=True)
class ChangesWeights:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        scores = magnitude(model, space)
        with torch.no_grad():
            model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(0.9)
        return scores


@dataclass(frozen=True)
class LeavesEvalMode:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        model.eval()
        return magnitude(model, space)


@dataclass(frozen=True)
class LeavesTrainable:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        model.requires_grad_(True)
        return magnitude(model, space)


@dataclass(frozen=True)
class LeavesGradients:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)
        return magnitude(model, space)


@dataclass(frozen=True)
class LeavesAttribute:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        model.get_submodule("model.layers.1.mlp").stored_mask = torch.ones(3)  # type: ignore[assignment]
        return magnitude(model, space)


@dataclass(frozen=True)
class LeavesGradientModeOff:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        torch.set_grad_enabled(False)
        return magnitude(model, space)


@dataclass(frozen=True)
class NoFinally:
    """Removes its hooks only if nothing goes wrong in between."""

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        handle = model.get_submodule("model.layers.1").register_forward_hook(lambda module, inputs, output: None)
        calibration.input_statistics()
        handle.remove()
        return magnitude(model, space)


@dataclass(frozen=True)
class DrawsGlobally:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space) * (1 + torch.rand(len(space)))


@dataclass(frozen=True)
class SeedsGlobally:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        torch.manual_seed(0)
        return magnitude(model, space)


CALLS = count(1)


@dataclass(frozen=True)
class IgnoresItsGenerator:
    """Draws from a generator of its own, seeded anew each time."""

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        own = torch.Generator().manual_seed(next(CALLS))
        return magnitude(model, space) * (1 + torch.rand(len(space), generator=own))


@dataclass(frozen=True)
class PrefersEarlyUnits:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space) / torch.arange(1, len(space) + 1)


@dataclass(frozen=True)
class MeanOfBatchMeans:
    """Weighs the last, smaller batch like the others."""

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        means = [ids.double().mean() for ids in calibration.batches()]
        return magnitude(model, space) * (torch.stack(means).mean() / 1000).exp().float()


@dataclass(frozen=True)
class FirstWindowOnly:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space) * calibration.windows[0].float().mean()


@dataclass(frozen=True)
class WrongSign:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return -magnitude(model, space)


@dataclass(frozen=True)
class UndeclaredGradients:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        mean, _ = calibration.gradients()
        return space.sum_weights(lambda name: (mean[name] * model.get_parameter(name)).abs())


@dataclass(frozen=True)
class UndeclaredBudget:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return magnitude(model, space) ** calibration.budget.sparsity


FAULTS = {
    NaNScore: "scores_are_one_finite_number_a_unit",
    WrongShape: "scores_are_one_finite_number_a_unit",
    WholeNumbers: "scores_are_one_finite_number_a_unit",
    AList: "scores_are_one_finite_number_a_unit",
    Crashes: "scores_are_one_finite_number_a_unit",
    UndeclaredBudget: "scores_are_one_finite_number_a_unit",
    RefusesAll: "scores_are_one_finite_number_a_unit",
    LeakingHook: "no_hook_is_left_behind",
    LeakingGradientHook: "no_hook_is_left_behind",
    ChangesWeights: "weights_are_left_alone",
    LeavesEvalMode: "flags_and_attributes_are_left_alone",
    LeavesTrainable: "flags_and_attributes_are_left_alone",
    LeavesGradients: "flags_and_attributes_are_left_alone",
    LeavesAttribute: "flags_and_attributes_are_left_alone",
    LeavesGradientModeOff: "flags_and_attributes_are_left_alone",
    NoFinally: "interruption_leaves_the_model_as_it_was",
    DrawsGlobally: "scoring_uses_no_global_randomness",
    SeedsGlobally: "scoring_uses_no_global_randomness",
    IgnoresItsGenerator: "same_calibration_gives_the_same_scores",
    PrefersEarlyUnits: "permuted_channels_have_permuted_scores",
    MeanOfBatchMeans: "batch_size_does_not_matter",
    FirstWindowOnly: "order_of_the_text_does_not_matter",
    WrongSign: "zero_channel_ranks_last",
    UndeclaredGradients: "needs_are_declared",
}
