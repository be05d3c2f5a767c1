"""The metrics that score units of any kind, the kinds they are tried on, and how a test gets their scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.models.describe import describe
from polyprune_core.plugins.decorator import provider_of
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.utils.rng import generator
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp
from polyprune_plugins.initializers.knapsack import Knapsack
from polyprune_plugins.initializers.llm_pruner import LLMPruner
from polyprune_plugins.initializers.magnitude import magnitude
from polyprune_plugins.initializers.obs import Obs
from polyprune_plugins.initializers.thinet import ThiNet
from polyprune_plugins.initializers.wanda import Wanda

Magnitude = provider_of(magnitude).factory
TAYLOR = ("element1", "vector", "element2", "mix")
METRICS: dict[str, Any] = {
    "wanda": Wanda(),
    "thinet": ThiNet(),
    "obs": Obs(),
    "knapsack": Knapsack(),
    "magnitude-1": Magnitude(power=1),
    "magnitude-2": Magnitude(),
    **{f"llm-pruner-{taylor}": LLMPruner(taylor) for taylor in TAYLOR},
}
metrics = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
CHOICES = {"heads and channels": (Head(), Channel(block=3)), "sublayers": (Attention(), Mlp()), "layers": (Layer(),)}
choices = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


def calibration_for(model: nn.Module, ids: torch.Tensor, batch_size: int = 8) -> Calibration:
    return Calibration(model, describe(model), ids, generator(0, "metric"), batch_size, measure=load_registry().measure)


def scores(metric: Any, model: nn.Module, space: MaskSpace, ids: torch.Tensor, batch_size: int = 8) -> torch.Tensor:
    return metric.score(model, space, calibration_for(model, ids, batch_size))


def unit_weights(space: MaskSpace, unit: int) -> list[tuple[str, int, slice]]:
    """Returns (parameter, dimension, span) of everything a unit owns."""
    group = space.groups[int(space.group[unit])]
    index = unit - space.offsets[int(space.group[unit])]
    return [
        (cut.parameter, cut.dim, slice(index * per_unit * cut.width, (index + 1) * per_unit * cut.width))
        for axis, per_unit in group.spans
        for cut in space.layout.axis[axis].cuts
    ]
