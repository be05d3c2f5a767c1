"""Frequency: the fraction of tokens for which the router chooses an expert.

This is the baseline of expert pruning: experts that are chosen for few tokens go first (SEER-MoE, arXiv 2404.05089;
compared with in REAP, arXiv 2510.13999). Units that are no experts are scored by another metric. It takes forward
passes of the dense model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Axis, Calibration, MaskSpace


@dataclass(frozen=True)
class Frequency:
    """Scores experts by how often they are chosen.

    Options:
        soft: whether a choice counts by the weight that the router gives it, in place of 1.
        others: the metric that scores units which are no experts.
    """

    soft: bool = False
    others: str = "wanda"

    made_for = "expert"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        experts = [axis for axis in map(space.layout.axis.__getitem__, space.axes) if axis.experts]
        chosen = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in experts}

        def count(axis: Axis) -> Callable[[tuple[Tensor, ...], Tensor], None]:
            def watch(inputs: tuple[Tensor, ...], _output: Tensor) -> None:
                index, weight = inputs[1].flatten().cpu(), inputs[2].flatten().double().cpu()
                chosen[axis.name].index_add_(0, index, weight if self.soft else torch.ones_like(weight))

            return watch

        if experts:
            calibration.observe({str(axis.experts): count(axis) for axis in experts})
        shares = {name: total / calibration.windows.numel() for name, total in chosen.items()}
        return calibration.score_others(shares, self.others, space)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "frequency",
        "how often the router chooses an expert",
        Frequency,
        needs=frozenset({"calibration"}),
        reference="SEER-MoE, arXiv 2404.05089; baseline of arXiv 2510.13999",
    )
