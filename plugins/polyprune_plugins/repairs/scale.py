"""Scale: each kept unit or column is multiplied by a factor, which becomes part of the reader's weight.

For one reader: W is its weight, G = E[x xᵀ] for its inputs x over the calibration text, S its kept columns and R its
removed columns. A = (WᵀW) ∘ G has the inner products of what the columns add to the output. The factors 1 + d of the
columns minimise E|W x - Σ_j (1 + d_j) W_j x_j|² + λ |d|²:

    d = (A_SS + λ I)⁻¹ A_SR 1,        W_j' = (1 + d_j) W_j

λ is `ridge` times the median of the diagonal of A. For one factor a unit, A is summed over the columns of each unit; a
unit that has a part in several experts has one factor in each. GRASPrune learns such factors together with its gates;
here they are solved for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polyprune_core import PluginError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel

# The ridge at least, as a share of the largest product: units that add nothing have no factor of their own.
SMALLEST = 1e-10


@dataclass(frozen=True)
class Scale:
    """Multiplies kept units or columns by factors.

    Options:
        of: whether each `unit` or each `column` of a reader has one factor.
        ridge: the weight of the ridge, as a multiple of the median inner product.
    """

    of: Literal["unit", "column"] = "unit"
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < float("inf"):
            raise PluginError(
                f"repair 'scale': ridge={self.ridge:g} cannot be used; give 0 or a number above 0, such as 0.1."
            )

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        import torch

        updates: dict[str, Tensor] = {}
        for reader in pruned.cut_readers():
            weight = reader.weight.double()
            products = (weight.T @ weight) * calibration.moments(reader.axis).second.double()
            missing = products[reader.keep][:, ~reader.keep].sum(dim=1)
            left = products[reader.keep][:, reader.keep]
            owner = reader.units[reader.keep].unique(return_inverse=True)[1]
            if self.of == "column":
                owner = torch.arange(len(left), device=left.device)
            number = int(owner.max()) + 1
            rows = left.new_zeros(number, len(left)).index_add_(0, owner, left)
            left = left.new_zeros(number, number).index_add_(1, owner, rows)
            missing = missing.new_zeros(number).index_add_(0, owner, missing)
            ridge = max(self.ridge * float(left.diag().median()), SMALLEST * float(left.diag().max()), SMALLEST**2)
            change = torch.linalg.solve(left + ridge * torch.eye(number, dtype=left.dtype, device=left.device), missing)
            updates |= reader.updates(weight[:, reader.keep] * (1 + change)[owner])
        return updates


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "scale",
        "one factor a unit makes up for what was removed",
        Scale,
        needs=frozenset({"calibration", "mix"}),
        reference="the factors of GRASPrune, by least squares",
    )
