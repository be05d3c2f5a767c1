"""Repairs with one fault each; without it, all of them would move part of a reader's bias, or change nothing."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from polyprune_core import Calibration, PrunedModel

Updates = Mapping[str, Tensor]


def readers(pruned: PrunedModel) -> dict[str, Tensor]:
    """Returns the weights of the readers that were cut, as they are left."""
    cut = {name for name, keep in pruned.axis_keep().items() if keep.any() and not keep.all()}
    names = {axis.reader_cut.parameter for axis in pruned.layout.axes if axis.name in cut}
    return {name: value.clone() for name, value in pruned.state_dict() if name in names}


@dataclass(frozen=True)
class Sound:
    """Without fault: what the others are made from. Readers that were cut are a little larger."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        return {name: 1.1 * weight for name, weight in readers(pruned).items()}


@dataclass(frozen=True)
class DenseShapes(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        dense = dict(pruned.base.model.named_parameters())
        return {name: 1.1 * dense[name].detach() for name in readers(pruned)}


@dataclass(frozen=True)
class UnknownName(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        return {"model.layers.0.mlp.scale": torch.ones(36)}


@dataclass(frozen=True)
class BiasesOfTheGone(Sound):
    """A bias for every reader, also of those that went with all of their sublayer."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        sizes = {a.reader_module: pruned.space.reader_weight(pruned.base.model, a.name) for a in pruned.layout.axes}
        return {f"{name}.bias": torch.zeros(len(weight)) for name, weight in sizes.items()}


@dataclass(frozen=True)
class NaNWhereNothingWent(Sound):
    """Divides by how many units went."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        gone = (~pruned.selection.keep).sum()
        norm = dict(pruned.state_dict())["model.norm.weight"]
        return {"model.norm.weight": norm * (gone / gone)}


@dataclass(frozen=True)
class AList(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Any:
        return list(super().repair(pruned, calibration).items())


@dataclass(frozen=True)
class UndeclaredText(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        calibration.input_statistics()
        return super().repair(pruned, calibration)


@dataclass(frozen=True)
class UndeclaredGradients(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        calibration.gradients()
        return super().repair(pruned, calibration)


@dataclass(frozen=True)
class UncountedPasses(Sound):
    """Runs the model on the windows by itself."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        with torch.no_grad():
            pruned.base.model(input_ids=calibration.windows, use_cache=False)
        return super().repair(pruned, calibration)


@dataclass(frozen=True)
class UndeclaredBiases(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        name, shape = next(iter(pruned.possible_biases().items()))
        return {**super().repair(pruned, calibration), name: torch.zeros(shape)}


@dataclass(frozen=True)
class DrawsGlobally(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        random.random()
        return super().repair(pruned, calibration)


CALLS = count(1)


@dataclass(frozen=True)
class IgnoresItsGenerator(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        own = torch.Generator().manual_seed(next(CALLS))
        return {
            n: v + 0.01 * torch.randn(v.shape, generator=own) for n, v in super().repair(pruned, calibration).items()
        }


@dataclass(frozen=True)
class EditsTheDenseModel(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        updates = super().repair(pruned, calibration)
        with torch.no_grad():
            pruned.base.model.get_parameter("model.norm.weight").mul_(1.01)
        return updates


@dataclass(frozen=True)
class LeavesAHook(Sound):
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        pruned.base.model.get_submodule("model.norm").register_forward_hook(lambda *_: None)
        return super().repair(pruned, calibration)


@dataclass(frozen=True)
class SelectsAnew(Sound):
    """Keeps one more unit than was decided."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        updates = super().repair(pruned, calibration)
        pruned.selection.keep[(~pruned.selection.keep).nonzero()[:1]] = True
        return updates


@dataclass(frozen=True)
class NoFinally(Sound):
    """Takes its hook off again unless it is interrupted."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        model = pruned.base.model
        handle = model.get_submodule("model.layers.0").register_forward_pre_hook(lambda *_: None)
        calibration.input_statistics()
        handle.remove()
        return super().repair(pruned, calibration)


@dataclass(frozen=True)
class AlwaysLouder(Sound):
    """Makes the output larger although nothing went."""

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Updates:
        return {"model.norm.weight": 1.2 * dict(pruned.state_dict())["model.norm.weight"]}


FAULTS = {
    DenseShapes: "updates_fit_what_is_left",
    UnknownName: "updates_fit_what_is_left",
    BiasesOfTheGone: "updates_fit_what_is_left",
    NaNWhereNothingWent: "updates_fit_what_is_left",
    AList: "updates_fit_what_is_left",
    UndeclaredText: "repair_costs_are_declared",
    UndeclaredGradients: "repair_costs_are_declared",
    UncountedPasses: "repair_costs_are_declared",
    UndeclaredBiases: "added_biases_are_declared",
    DrawsGlobally: "repairing_uses_no_global_randomness",
    IgnoresItsGenerator: "same_calibration_gives_the_same_updates",
    EditsTheDenseModel: "repair_leaves_its_inputs_alone",
    LeavesAHook: "repair_leaves_its_inputs_alone",
    SelectsAnew: "repair_leaves_its_inputs_alone",
    NoFinally: "interrupted_repair_leaves_the_model_as_it_was",
    AlwaysLouder: "nothing_removed_needs_no_repair",
}
