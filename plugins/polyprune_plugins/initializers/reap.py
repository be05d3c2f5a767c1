"""REAP: how much an expert adds to the hidden state when it is chosen, weighted by the router.

Lasby et al. 2025 (arXiv 2510.13999): the score is the mean of g(x) ||f(x)|| over the tokens x for which the router
chooses the expert. g is the router's weight after its own normalisation, and f the output of the expert. An expert that
is never chosen scores 0. Units that are no experts are scored by another metric. It takes forward passes of the dense
model only. Each chosen expert runs a second time, to measure its own output.
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
class Reap:
    """Scores experts by what they add to the hidden state.

    Options:
        others: the metric that scores units which are no experts.
    """

    others: str = "wanda"

    made_for = "expert"

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        experts = [axis for axis in map(space.layout.axis.__getitem__, space.axes) if axis.experts]
        chosen = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in experts}
        added = {axis.name: torch.zeros(axis.size, dtype=torch.float64) for axis in experts}

        def measure(axis: Axis) -> Callable[[tuple[Tensor, ...], Tensor], None]:
            module = model.get_submodule(str(axis.experts))

            def watch(inputs: tuple[Tensor, ...], _output: Tensor) -> None:
                hidden, indices, weights = inputs
                for place in range(indices.shape[1]):
                    index, weight = indices[:, place : place + 1], weights[:, place : place + 1]
                    # One expert a token with weight 1, so that what comes out is its own output.
                    size = module.forward(hidden, index, torch.ones_like(weight)).double().norm(dim=-1)
                    added[axis.name].index_add_(0, index[:, 0].cpu(), (size * weight[:, 0]).cpu())
                    chosen[axis.name].index_add_(0, index[:, 0].cpu(), torch.ones_like(size).cpu())

            return watch

        if experts:
            calibration.observe({str(axis.experts): measure(axis) for axis in experts})
        means = {name: added[name] / chosen[name].clamp(min=1) for name in chosen}
        return calibration.score_others(means, self.others, space)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "reap",
        "what an expert adds where it is chosen, weighed by the router",
        Reap,
        needs=frozenset({"calibration"}),
        reference="REAP, arXiv 2510.13999",
    )
