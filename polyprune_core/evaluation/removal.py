"""The order in which the units of every layer go, and what each costs, where the others are fitted anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.pruning.refit import DenseReader, removal
from polyprune_core.pruning.space import MaskSpace, column_owner


@dataclass(frozen=True)
class Removal:
    """A group of n units as they go one by one.

    Attributes:
        order: (n,) int64, which unit of the group goes first, second, ….
        errors: (n,) float64, what each then adds to the mean squared error of the output, after the refit.
        output: mean squared size of the output about its mean.
    """

    order: Tensor
    errors: Tensor
    output: float


def removals(model: nn.Module, space: MaskSpace, calibration: Calibration, ridge: float) -> Iterator[Removal]:
    """Yields the greedy removal of each group's units by the error that is left after a least-squares refit.

    `ridge`: what is added to the diagonal of the covariance of a reader's inputs, over the median of that diagonal: a
    few inputs of massive activations would decide a mean. A unit alone in its group costs the whole output.

    Raises:
        ConfigError: the ridge is not above 0.
    """
    if not 0 < ridge < float("inf"):
        raise ConfigError(f"ridge={ridge:g} leaves a covariance without inverse; give a number above 0, such as 0.1.")
    for group in space.groups:
        readers = []
        for name, _ in group.spans:
            axis = space.layout.axis[name]
            moments = calibration.moments(name)
            second, mean = moments.second.double(), moments.mean.double()
            weight, covariance = space.reader_weight(model, name).double(), second - mean.outer(mean)
            owner = column_owner(group, axis, len(mean))
            own = (owner >= 0).nonzero().flatten()
            if len(own) < len(owner):
                weight, covariance, owner = weight[:, own], covariance[own][:, own], owner[own]
            readers.append(DenseReader(weight, covariance, owner))
        yield Removal(*removal(readers, group.count, ridge), sum(reader.size() for reader in readers))
