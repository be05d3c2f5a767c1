"""Sequential least squares: readers are refitted from layer to layer, and each makes up for the errors before it too.

For one reader: W is its weight (out, F), x its inputs in the dense model, and z (k,) its inputs in the pruned model, in
which all earlier readers are refitted. e is the residual stream of the dense model minus that of the pruned model
before the reader's output is added, and t = W x + e.

    W' = (D + λ W_S) (C + λ I)⁻¹        b = E[t] - W' E[z]        C = cov(z), D = cov(t, z)

minimises E|t - W' z - b|² + λ |W' - W_S|². λ is `ridge` times the median of the diagonal of C, and W_S are the kept
columns. Without e, the fit only shrinks weights of uncertain inputs, and the model gets worse. Týr-the-Pruner (Li et
al. 2025, arXiv 2503.09657) adds e to the targets; SparseGPT (arXiv 2301.00774) prunes in this order.

Readers that lost nothing are refitted too. The experts of a layer are one reader without b; its inputs are those that
the router chooses among the experts that stay, times the router's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyprune_core import PluginError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel, Reader, Seen


@dataclass(frozen=True)
class Sequential:
    """Refits all readers from layer to layer.

    Options:
        ridge: the weight of the ridge, as a multiple of the median variance of an input.
        bias: whether the fit has an intercept b, which becomes a bias of the reader.
    """

    ridge: float = 0.1
    bias: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ridge < float("inf"):
            raise PluginError(
                f"repair 'sequential': ridge={self.ridge:g} cannot be used; give a number above 0, such as 0.1."
            )

    @property
    def adds_biases(self) -> bool:
        return self.bias

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        return calibration.refitted(pruned, self.refit) if pruned.cut_readers(routed=True) else {}

    def refit(self, reader: Reader, seen: Seen) -> Mapping[str, Tensor]:
        """Returns the new weight and bias of one reader."""
        import torch

        mean, products, target, cross = (each.double() for each in (seen.mean, seen.products, seen.target, seen.cross))
        bias = self.bias and not reader.routed
        old = torch.zeros_like(target) if reader.bias is None else reader.bias.double()
        if bias:
            products, cross = products - mean.outer(mean), cross - target.outer(mean)
        else:
            cross = cross - old.outer(mean)
        ridge = self.ridge * products.diag().median().clamp(min=1e-12)
        right = cross + ridge * reader.weight[:, reader.keep].double()
        weight = torch.linalg.solve(
            products + ridge * torch.eye(len(mean), dtype=mean.dtype, device=mean.device), right.T
        ).T
        return reader.updates(weight, target - weight @ mean if bias else None)


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "sequential",
        "readers refitted layer by layer, for what was lost before them too",
        Sequential,
        needs=frozenset({"calibration", "mix"}),
        reference="Týr-the-Pruner, arXiv 2503.09657; SparseGPT's order, arXiv 2301.00774",
    )
