"""Random: each unit gets a score drawn uniformly from [0, 1). Every criterion has to beat this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace


@dataclass(frozen=True)
class Random:
    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        return calibration.rand(len(space))


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "random",
        "uniform random scores",
        Random,
        xfail={
            "permuted_channels_have_permuted_scores": "scores are drawn by place and know nothing of the channel",
            "zero_channel_ranks_last": "the floor that criteria have to beat does not look at the weights",
        },
    )
