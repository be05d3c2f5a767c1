"""SLEB: greedy removal by loss. The unit whose absence raises the loss least goes first, then the next given that.

arXiv 2402.09025, algorithm 1, with the loss on the calibration text as its metric. A unit's score is the order of its
removal; with U units it takes U + (U - 1) + … runs of the text, so it is for whole layers and sublayers. Forward passes
alone, and none on the unpruned model. The released code never removes the first and the last block: `barriers=1`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

MOST_UNITS = 512


@dataclass(frozen=True)
class Sleb:
    """`windows` of calibration text; `until`: share of units to remove, the loss without each ranks the others.

    `barriers`: layers at either end that are not tried, and go when nothing else is left.
    """

    granularities = ("layer", "attention", "mlp")
    windows: int = 16
    until: float = 1.0
    barriers: int = 0

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ConfigError(f"sleb: windows={self.windows} is no number of windows; give 1 or more.")
        if not 0 < self.until <= 1:
            raise ConfigError(f"sleb: until={self.until:g} is no share of the units; give more than 0, at most 1.")
        if self.barriers < 0:
            raise ConfigError(f"sleb: barriers={self.barriers} is no number of layers; give 0 or more.")

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        if len(space) > min(MOST_UNITS, len(space.groups)):
            raise ConfigError(
                f"sleb runs the text once for every unit that is left, and {space.name or 'this granularity'} has "
                f"{len(space)} units; use whole sublayers, at most {MOST_UNITS}, with --granularity layer, attention, "
                "mlp or attention+mlp, or another metric."
            )
        removed: list[int] = []
        left = self._candidates(space)
        scores = torch.full((len(space),), float(len(space)))
        rounds = self._rounds(len(space), len(left))
        for done in range(rounds):
            losses = self._losses(removed, left, space, calibration)
            first, *left = [left[place] for place in torch.argsort(losses, stable=True).tolist()]
            removed.append(first)
            calibration.progress(done + 1, rounds)
        order = [*removed, *left]
        scores[order] = torch.arange(len(order), dtype=scores.dtype)
        return scores

    def windows_run(self, units: int, windows: int, held_back: int) -> int:
        """See `Initializer`: at most so many, as there may be barriers."""
        runs = sum(range(units, units - self._rounds(units, units), -1))
        return min(self.windows, windows) * max(runs, 1)

    def _rounds(self, units: int, tried: int) -> int:
        # The last unit has nothing to be compared with; 0.07 of 100 is 7, whatever floating point makes of it.
        return min(ceil(self.until * units - 1e-9), tried - 1)

    def _candidates(self, space: MaskSpace) -> list[int]:
        """Returns the units between the barriers; raises ConfigError where that leaves none."""
        last = space.layout.num_layers - self.barriers
        found = [unit for unit, layer in enumerate(space.layer.tolist()) if self.barriers <= layer < last]
        if not found:
            raise ConfigError(
                f"sleb: barriers={self.barriers} at either end leave none of {space.layout.num_layers} layers to "
                f"remove; give {(space.layout.num_layers - 1) // 2} or less."
            )
        return found

    def _losses(self, removed: list[int], left: list[int], space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (len(left),) losses in nats without what is removed and, one at a time, each unit that is left."""
        import torch

        masks = torch.ones(len(left), len(space), dtype=torch.bool)
        masks[:, removed] = False
        masks[range(len(left)), left] = False
        text = calibration.windows[: self.windows]
        batches = text.split(calibration.batch_size)
        losses = [calibration.losses(space, masks, ids) * len(ids) / len(text) for ids in batches]
        return torch.stack(losses).sum(dim=0)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "sleb",
        "greedy removal of whole sublayers by loss",
        Sleb,
        needs=frozenset({"calibration"}),
        reference="SLEB, arXiv 2402.09025, algorithm 1",
    )
