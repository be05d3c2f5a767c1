"""Bias compensation: the mean of what removed units added to their reader's output becomes a bias.

b = W_R E[x_R], W the reader's weight, x what it takes in over the calibration text, R the columns that are removed
(FLAP, An et al. 2024, arXiv 2312.11983, eq. 7). A sublayer with nothing left has no reader, and gets no bias.
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
    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        cut = {name: keep for name, keep in pruned.axis_keep().items() if keep.any() and not keep.all()}
        means = {name: found.mean for name, found in calibration.input_statistics().items()} if cut else {}
        biases = {}
        for name, keep in cut.items():
            axis = pruned.layout.axis[name]
            weight = pruned.space.reader_weight(pruned.base.model, name)
            own = slice(axis.reader_cut.start, axis.reader_cut.start + axis.size * axis.reader_width)
            removed = ~keep.repeat_interleave(axis.reader_width).to(weight.device)
            added = weight[:, own][:, removed] @ means[name][own][removed]
            name = f"{axis.reader_module}.bias"
            old = dict(pruned.base.model.named_parameters()).get(name)
            biases[name] = added if old is None else added + old.detach().float()
        return biases


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "bias",
        "the mean of what was removed becomes a bias of its reader",
        Bias,
        needs=frozenset({"calibration"}),
        reference="An et al. 2024, arXiv 2312.11983, eq. 7",
    )
