"""Greedy removal of units layer by layer: in which order they go, and what error each adds after a refit."""

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
    """The order in which the n units of a group are removed one by one, and the error that each removal adds.

    Attributes:
        order: (n,) int64, numbers of units within the group; the unit that is removed first comes first.
        errors: (n,) float64, in the same order: how much the removal adds to the mean squared error of the output, if
            the weights of the other units are refitted.
        output: the mean squared deviation of the output from its mean, for comparison with `errors`.
    """

    order: Tensor
    errors: Tensor
    output: float


def removals(model: nn.Module, space: MaskSpace, calibration: Calibration, ridge: float) -> Iterator[Removal]:
    """Yields for each group of units the order of greedy removal, by the error left after a least-squares refit.

    Each step removes the unit whose removal adds the least error. A unit that is alone in its group adds the whole
    output as error.

    Args:
        model: the dense model.
        space: the units.
        calibration: the text, whose moments are used.
        ridge: what is added to the diagonal of the covariance of a reader's inputs, as a multiple of the median of that
            diagonal. The median is used because a few inputs with massive activations would decide the mean.

    Raises:
        ConfigError: the ridge is not a finite number above 0.
    """
    if not 0 < ridge < float("inf"):
        raise ConfigError(
            f"ridge={ridge:g} is not allowed: the covariance would have no inverse; give a number above 0, such as 0.1."
        )
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
