"""Least squares: the kept columns of a reader are refitted to give the output that all columns gave before.

For one reader: W is its weight (out, F), x its inputs over the calibration text, m = E[x], C = E[x xᵀ] - m mᵀ, S its
kept columns and R its removed columns.

    W_S' = W_S + W_R C_RS (C_SS + λ I)⁻¹        b = W m - W_S' m_S

minimises E|W x - W_S' x_S - b|² + λ |W_S' - W_S|². The ridge pulls the weights towards their old values. λ is `ridge`
times the median of the diagonal of C, because one massive activation can make up most of the mean. Without `bias`, C is
E[x xᵀ] and b is 0. OSSCAR (Meng et al. 2024, arXiv 2403.12983) solves the same system without this ridge.

A bias that the reader has already is added to b. A sublayer that is removed as a whole is left as it is. In a mixture,
each expert is a reader without a new bias; its inputs x are those of the tokens that the router chooses it for, times
the router's weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import PluginError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel


@dataclass(frozen=True)
class LeastSquares:
    """Refits the readers that lost input features.

    Options:
        ridge: the weight of the ridge, as a multiple of the median variance of an input.
        bias: whether the fit has an intercept b, which becomes a bias of the reader.
    """

    ridge: float = 0.1
    bias: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise PluginError(
                f"repair 'least-squares': ridge={self.ridge:g} cannot be used; give 0 or a number above 0, such as 0.1."
            )

    @property
    def adds_biases(self) -> bool:
        return self.bias

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        updates: dict[str, Tensor] = {}
        for reader in pruned.cut_readers():
            moments = calibration.moments(reader.axis)
            weight, mean, products = reader.weight.double(), moments.mean.double(), moments.second.double()
            bias = self.bias and not reader.routed
            if bias:
                products = products - mean.outer(mean)
            keep, removed = reader.keep, ~reader.keep
            added = weight[:, removed] @ products[removed][:, keep]
            ridge = self.ridge * float(products.diag().median())
            new = weight[:, keep] + solved(products[keep][:, keep], added.T, ridge).T
            intercept = None
            if bias:
                intercept = weight @ mean - new @ mean[keep]
                intercept = intercept if reader.bias is None else intercept + reader.bias
            updates |= reader.updates(new, intercept)
        return updates


def solved(matrix: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Returns (matrix + ridge I)⁻¹ right, float64; the ridge grows until the matrix is positive definite in float64."""
    import torch

    identity, largest = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), float(matrix.diag().max())
    while True:
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * identity)
        if not failed:
            return torch.cholesky_solve(right, factor)
        ridge = max(10 * ridge, 1e-10 * largest, 1e-30)


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "least-squares",
        "readers refitted to give what they gave before",
        LeastSquares,
        needs=frozenset({"calibration", "mix"}),
        reference="OSSCAR, arXiv 2403.12983, with a ridge towards the weights as they were",
    )
