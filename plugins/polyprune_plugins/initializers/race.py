"""Race: selects with several metrics in every pooling, and takes the selection with the lowest loss on held-back text.

A pooling is a scale together with a scope. The race is successive halving (Jamieson and Talwalkar 2016, arXiv
1502.07943): all selections run on the same few windows, the better half of them on as many further windows, the better
half of those on twice as many, and so on, until one selection is left or the text ends. Every run is one forward pass
and is counted. The scores are those of the winner. The units that it keeps score above all others, so a search starts
from exactly that selection.
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
    """Scores units as the winner of the race does.

    Options:
        of: the metrics that take part, joined by +.
        windows: how many windows of the held-back text all selections run on.
    """

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
        most = len(self.metrics) * len(SCALES) * 2
        run = len(self.metrics) * windows
        for field, part, _ in self.rounds(most, held_back):
            run += field * len(range(held_back)[part])
        return run

    def rounds(self, field: int, length: int) -> Iterator[tuple[int, slice, int]]:
        """Yields how many run, on which part of a text of `length` windows, and how many of them are left then."""
        seen = 0
        while field > 1 and seen < length:
            part, left = slice(seen, min(seen + max(self.windows, seen), length)), math.ceil(field / 2)
            yield field, part, left
            field, seen = left, part.stop

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        import torch

        field = torch.stack(list(self.starters(space, calibration).values()))
        keep = torch.stack([calibration.budget.select(values, space).keep for values in field])
        text, losses = calibration.held_back, torch.zeros(len(field))
        for _, part, left in self.rounds(len(field), len(text)):
            ids = text[part]
            losses = losses + calibration.losses(space, keep, ids).nan_to_num(nan=math.inf) * len(ids)
            better = losses.argsort(stable=True)[:left]
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
