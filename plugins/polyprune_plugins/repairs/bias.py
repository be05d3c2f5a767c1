"""Bias compensation: the mean output of the removed columns of a reader becomes a bias of the reader.

b = W_R E[x_R], where W is the reader's weight, x its inputs over the calibration text, and R its removed columns. This
is the baseline bias of FLAP (An et al. 2024, arXiv 2312.11983). A sublayer that is removed as a whole gets no bias.
Experts get none either, because the model cannot hold a bias for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel


@dataclass(frozen=True)
class Bias:
    adds_biases = True

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        biases: dict[str, Tensor] = {}
        for reader in pruned.cut_readers():
            if reader.routed:
                continue
            added = reader.weight[:, ~reader.keep] @ calibration.moments(reader.axis).mean[~reader.keep]
            biases |= reader.updates(bias=added if reader.bias is None else added + reader.bias)
        return biases


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "bias",
        "the mean of what was removed becomes a bias of its reader",
        Bias,
        needs=frozenset({"calibration"}),
        reference="FLAP, An et al. 2024, arXiv 2312.11983",
    )
