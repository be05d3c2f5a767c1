"""Evolution: an evolution strategy searches how many units each layer keeps, with forward passes only.

A metric ranks the units of one layer better than it compares layers. So its order within each layer and kind is kept.
With z the scores of the metric, standardised within each group of units of one layer and kind, unit i of group g scores
z_i + d_g. Sep-CMA-ES (Ros and Hansen 2008) searches the offsets d, one for each group, for the lowest next-token loss
under the selection that the run will make. All candidates of one generation see the same text, so a hard batch cancels.
The result is the centre of the last generation, unless the metric by itself has no higher loss on the whole calibration
text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, PluginError, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

LEAST = {"generations": 1, "population": 4, "windows": 1}


@dataclass(frozen=True)
class Evolution:
    """Scores units by a metric and an offset for each of G groups, one for each layer and kind.

    Options:
        metric: the metric whose order within a group is kept. Its options follow after slashes, as in
            llm-pruner/taylor=vector.
        generations: how many generations; None stands for two for every three groups.
        population: how many candidates a generation has; None stands for 4 + 3 ln G.
        windows: how many windows of calibration text a generation sees.
        sigma: the spread of the first candidates, in standard deviations of the metric within a group.
    """

    metric: str = "wanda"
    generations: int | None = None
    population: int | None = None
    windows: int = 2
    sigma: float = 1.0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise PluginError(f"evolution: option {name}={value} is too small; give {least} or more.")
        if not 0 < self.sigma < math.inf:
            raise PluginError(
                f"evolution: option sigma={self.sigma:g} is no standard deviation; give a number above 0."
            )

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        _require_something_to_trade(space, calibration)
        metric = calibration.score(self.metric.replace("/", ":"), space, "zscore")
        return metric + self._search(metric, space, calibration)[space.group]

    def _search(self, metric: Tensor, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns the offsets (G,) found."""
        import numpy as np
        import torch
        from cmaes import SepCMA

        def losses(offsets: Tensor, ids: Tensor) -> Tensor:
            masks = [calibration.budget.select(metric + one[space.group], space).keep for one in offsets]
            return _losses(calibration, space, torch.stack(masks), ids)

        # In an order of their own: which windows are drawn is decided by the seed and the text alone.
        text = torch.tensor(sorted(calibration.windows.tolist()))
        groups, rng = len(space.groups), calibration.rng
        seed = int(torch.randint(2**32, (), generator=rng))
        strategy = SepCMA(np.zeros(groups), self.sigma, seed=seed, population_size=self.population)
        generations = self.generations or math.ceil(groups * 2 / 3)
        for generation in range(generations):
            ids = text[torch.randperm(len(text), generator=rng)[: self.windows]]
            asked = np.stack([strategy.ask() for _ in range(strategy.population_size)])
            found = losses(torch.from_numpy(asked).float(), ids)
            strategy.tell([(offsets, float(loss)) for offsets, loss in zip(asked, found, strict=True)])
            calibration.progress(generation + 1, generations)
        ends = torch.stack([torch.zeros(groups), torch.from_numpy(strategy.mean).float()])
        return ends[int(losses(ends, text).argmin())]


def _require_something_to_trade(space: MaskSpace, calibration: Calibration) -> None:
    """Raises ConfigError where every offset gives the same selection."""
    if calibration.budget.scope == "layer":
        raise ConfigError("evolution searches how much each layer gives, which scope layer fixes; use kind or global.")
    if len(space.groups) < 2:
        raise ConfigError("evolution trades between groups of units and there is only one; use a model of more layers.")


def _losses(calibration: Calibration, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
    """Returns (K,) mean losses on `ids`, in batches no larger than the run's; infinite where one is not finite."""
    import torch

    batches = ids.split(calibration.batch_size)
    means = [calibration.losses(space, masks, batch).double() * (len(batch) / len(ids)) for batch in batches]
    return torch.stack(means).sum(dim=0).nan_to_num(nan=math.inf)


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "evolution",
        "CMA-ES over how much each layer gives, on top of a metric",
        Evolution,
        needs=frozenset({"calibration", "budget"}),
        reference="sep-CMA-ES: Ros and Hansen 2008",
    )
