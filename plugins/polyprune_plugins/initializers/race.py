"""Race: of several metrics, each in every pooling, the selection that loses least on text held back.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all selections are run on the same few windows, the
better half of them on as many more, then the better half of those on twice as many, until one is left or the text ends.
Every run is one forward pass, and counts. A score is the winner's, with the units that it keeps above all others, so
that a search starts from that very selection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from polyprune_core import ConfigError, Initializer, PolypruneError, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

SCALES = ("raw", "zscore", "per-parameter")


@dataclass(frozen=True)
class Race:
    """`of`: names of metrics, joined by "+"; `windows`: how many of the text held back all selections are run on."""

    of: str = "thinet+flap+wanda"
    windows: int = 4

    def __post_init__(self) -> None:
        if not all(self.metrics):
            raise ConfigError(f"race: of={self.of!r} names no metrics; give names joined by +, as thinet+flap.")
        if self.windows < 1:
            raise ConfigError(f"race: windows={self.windows} is no number of windows; give 1 or more.")

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that take part."""
        return self.of.split("+")

    def windows_run(self, units: int, windows: int, held_back: int) -> int:
        """See `Initializer`: at most so many, as selections that are the same run once."""
        run, field, seen = len(self.metrics) * windows, len(self.metrics) * len(SCALES) * 2, 0
        while field > 1 and seen < held_back:
            more = min(max(self.windows, seen), held_back - seen)
            run, field, seen = run + field * more, math.ceil(field / 2), seen + more
        return run

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        field = torch.stack(list(self.starters(space, calibration).values()))
        keep = torch.stack([calibration.budget.select(values, space).keep for values in field])
        text, seen, losses = calibration.held_back, 0, torch.zeros(len(field))
        while len(field) > 1 and seen < len(text):
            ids = text[seen : seen + max(self.windows, seen)]
            losses = losses + calibration.losses(space, keep, ids).nan_to_num(nan=math.inf) * len(ids)
            seen += len(ids)
            better = losses.argsort(stable=True)[: math.ceil(len(field) / 2)]
            field, keep, losses = field[better], keep[better], losses[better]
        return field[0]

    def starters(self, space: MaskSpace, calibration: Calibration) -> dict[bytes, Tensor]:
        """Returns scores (U,) by what they keep, with kept units above all others."""
        found: dict[bytes, Tensor] = {}
        refused: list[PolypruneError] = []
        for metric in self.metrics:
            for values in (calibration.score(metric, space, how) for how in SCALES):
                for scope in dict.fromkeys((calibration.budget.scope, "kind")):
                    try:
                        keep = replace(calibration.budget, scope=scope).select(values, space).keep
                    except PolypruneError as error:
                        refused.append(error)
                        continue
                    above = values + keep * (1 + float(values.max() - values.min()))
                    found.setdefault(keep.numpy().tobytes(), above)
        if not found:
            raise refused[0]
        return found


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "race",
        "the metric and pooling that lose least on text held back",
        Race,
        needs=frozenset({"calibration", "budget", "held-back"}),
        reference="successive halving, arXiv 1502.07943",
    )
