"""No repair: the weights that stay are left as they are, as in the dense model or as an earlier repair made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel


@dataclass(frozen=True)
class NoRepair:
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        return pruned.updates


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider("none", "the weights that stay are left as they are", NoRepair)
